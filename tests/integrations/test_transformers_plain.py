"""Models that were masked are saved plain: after harden, after a trainer that hardens, and with low-rank updates."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

import stochprune as sp
from tests.integrations import tiny
from tests.integrations.tiny_models import build, run, same_state


def hardened_by_trainer(transformers, hf, model, folder):
    args = hf.MaskTrainingArguments(**tiny.settings(folder, max_steps=1), sparsity=0.5, harden=True)
    trainer = hf.MaskTrainer(model, args, train_dataset=tiny.texts())
    trainer.train()
    trainer.save_model(folder)


def hardened_by_callback(transformers, hf, model, folder):
    args = transformers.TrainingArguments(**tiny.settings(folder, max_steps=1))
    callbacks = [hf.MaskCallback(0.5, harden=True)]
    trainer = transformers.Trainer(model, args, train_dataset=tiny.texts(), callbacks=callbacks)
    trainer.train()
    trainer.save_model(folder)


def hardened_alone(transformers, hf, model, folder):
    sp.harden(model, 0.5).save_pretrained(folder)


def hardened_and_unloaded(transformers, hf, model, folder):
    sp.harden(model, 0.5)
    with pytest.raises(ValueError, match=r"hardened already.*0\.5"):
        hf.merge_and_unload(model, 0.5)
    hf.merge_and_unload(model).save_pretrained(folder)


@pytest.mark.parametrize(
    ("how", "name"),
    [
        (hardened_by_trainer, "llama"),
        (hardened_by_callback, "llama"),
        (hardened_alone, "qwen3"),
        (hardened_alone, "mixtral"),
        (hardened_and_unloaded, "llama"),
    ],
)
def test_a_hardened_model_is_saved_plain(transformers, hf, tmp_path, how, name):
    dense = build(transformers, name)
    model = hf.get_masked_model(copy.deepcopy(dense), hf.MaskConfig(sparsity=0.5, targets=["*proj*"]))
    how(transformers, hf, model, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert "stochprune" not in str(content) and "quantization_config" not in content
    assert not [key for key in load_file(tmp_path / "model.safetensors") if "mask" in key]
    assert not hasattr(model, "hf_quantizer") and model.state_dict().keys() == dense.state_dict().keys()
    assert model.config._experts_implementation == dense.config._experts_implementation
    again = type(dense).from_pretrained(tmp_path)
    assert same_state(again, model) and torch.equal(run(again), run(model.eval()))
    with pytest.raises(ValueError, match="is not masked"):
        hf.merge_and_unload(model)


@pytest.mark.parametrize("hardened", [False, True])
def test_low_rank_updates_are_merged(transformers, hf, tmp_path, hardened):
    llama = build(transformers, "llama")
    model = hf.get_masked_model(copy.deepcopy(llama), hf.MaskConfig(sparsity=0.5))
    sp.nn.add_lora(model, rank=2)  # the output layer gets an update too, under its own zeros
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.fill_(0.1)
    expected = run(model)
    if hardened:
        sp.harden(model)
    hf.merge_and_unload(model).save_pretrained(tmp_path)
    assert [type(a) for a in model.modules()] == [type(b) for b in llama.modules()]
    assert not torch.equal(model.lm_head.weight, llama.lm_head.weight)
    assert torch.allclose(run(model), expected, atol=1e-5) and not torch.allclose(run(llama), expected, atol=1e-2)
    assert torch.equal(run(transformers.AutoModelForCausalLM.from_pretrained(tmp_path)), run(model))
