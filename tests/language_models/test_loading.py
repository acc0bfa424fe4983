"""Models from folders: dropout of all kinds, noise that cannot be switched off, and code from the hub."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

from stochprune.language_models import load_language_model  # noqa: E402
from stochprune.language_models.loading import same_generator, without_dropout  # noqa: E402
from stochprune.language_models.model_sizes import LanguageModelSizes  # noqa: E402


def opt():
    """A model whose layers call F.dropout with rates of their own."""
    config = transformers.OPTConfig(
        vocab_size=32, hidden_size=8, ffn_dim=12, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=8
    )
    with same_generator():
        return transformers.OPTForCausalLM(config)


def test_a_model_trains_without_dropout():
    model, tokens = opt(), torch.arange(8)[None]
    without_dropout(model.train())
    assert model.training and torch.equal(model(tokens).logits, model(tokens).logits)


def test_each_module_keeps_its_mode():
    model = opt().train()
    model.lm_head.eval()
    modes = [module.training for module in model.modules()]
    without_dropout(model)
    assert [module.training for module in model.modules()] == modes and False in modes and True in modes


def test_noise_that_stays_is_refused():
    model = opt()
    model.lm_head.register_forward_hook(lambda *given: nn.functional.dropout(given[-1], 0.5))
    with pytest.raises(ValueError, match=r"OPTForCausalLM.*config\.json"):
        without_dropout(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_attn_implementation": "evil/kernel"}, "_attn_implementation 'evil/kernel'"),
        ({"text_config": {"experts_implementation": "evil/kernel:x"}}, "evil/kernel:x"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers.*1000000"),
    ],
)
def test_hostile_configurations_are_refused(tmp_path, change, message):
    content = opt().config.to_dict() | change
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        LanguageModelSizes(tmp_path)
    if "num_hidden_layers" not in change:
        with pytest.raises(ValueError, match=message):
            load_language_model(tmp_path)
