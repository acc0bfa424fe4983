"""convert warns once of the weights without masks, with their share; ordinary models give no warning."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import stochprune as sp
from stochprune import models
from stochprune.nn import UnmaskedWeightsWarning


class Experts(nn.Module):
    """Eight experts in one tensor, as mixtures of experts hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.ones(8, 16, 4))
        self.router = nn.Linear(16, 8)


def mixture() -> nn.Module:
    with torch.device("meta"):
        return nn.ModuleDict({"table": nn.Embedding(100, 16), "layers": nn.Sequential(Experts(), Experts())})


def lines(model: nn.Module, **options) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sp.convert(model, **options)
    return [str(warning.message) for warning in caught if warning.category is UnmaskedWeightsWarning]


def test_experts_are_listed_once_with_their_share():
    total = sum(p.numel() for p in mixture().parameters())
    (line,) = lines(mixture())
    assert f"layers.*.up (2 of (8, 16, 4), {100 * 2 * 8 * 16 * 4 / total:.1f} %)" in line
    assert "table" not in line and "router" not in line
    with pytest.warns(UnmaskedWeightsWarning) as caught:
        sp.convert(mixture())
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"exclude": "layers.*.up"}, False),
        ({"exclude": Experts, "include": "*"}, None),
        ({"include": "*.router.weight"}, False),
        ({"include": nn.Linear}, False),
        ({"include": "*"}, True),
        ({"masks": {"layers.0.router.weight": torch.ones(8, 16, dtype=torch.bool)}}, False),
    ],
    ids=str,
)
def test_a_warning_is_given_only_if_the_user_did_not_decide(options, said):
    assert bool(lines(mixture(), **options)) == bool(said)


@pytest.mark.parametrize(("width", "count"), [(10, 0), (11, 1)])
def test_below_one_per_cent_nothing_is_said(width, count):
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(100, 100), nn.Module())  # 10100 parameters
        model[1].query = nn.Parameter(torch.empty(10, width))
    assert len(lines(model)) == count


@pytest.mark.parametrize("name", ["resnet20", "vgg16", "mlp", "vit", "gpt"])
def test_own_models_give_no_line(name):
    make = {
        "resnet20": lambda: models.resnet20(seed=0),
        "vgg16": lambda: models.vgg16(width=8, seed=0),
        "mlp": lambda: models.mlp((4, 3, 2), seed=0),
        "vit": lambda: models.vit(seed=0),
        "gpt": lambda: models.gpt(13, 12, width=12, depth=1, heads=3, seed=0),
    }
    assert not lines(make[name]())


SMALL = {"num_hidden_layers": 1}
FAMILIES = {  # model, configuration, its options
    "GPT2LMHeadModel": ("GPT2Config", {"n_layer": 1}),
    "BertForMaskedLM": ("BertConfig", SMALL),
    "LlamaForCausalLM": ("LlamaConfig", SMALL),
    "T5ForConditionalGeneration": ("T5Config", {}),
    "ViTForImageClassification": ("ViTConfig", SMALL),
    "SwinForImageClassification": ("SwinConfig", {}),
    "CLIPModel": ("CLIPConfig", {}),
    "ConvNextForImageClassification": ("ConvNextConfig", {}),
    "ResNetForImageClassification": ("ResNetConfig", {}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_ordinary_families_of_transformers_give_no_line(name, transformers):
    config, options = FAMILIES[name]
    with torch.device("meta"):
        model = getattr(transformers, name)(getattr(transformers, config)(**options))
    assert not lines(model)


def test_mamba_reads_the_weights_of_its_children(transformers):
    with torch.device("meta"):
        model = transformers.MambaForCausalLM(transformers.MambaConfig(**SMALL))
    (line,) = lines(model)
    assert "dt_proj.weight" in line and "backbone.layers.0.mixer" in line and "in_proj.weight" not in line


MIXTURES = {
    "Qwen3MoeForCausalLM": ("Qwen3MoeConfig", {"moe_intermediate_size": 8, "num_experts": 4, "head_dim": 8}),
    "MixtralForCausalLM": ("MixtralConfig", {"num_local_experts": 4}),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_of_experts_of_transformers_are_told(name, transformers):
    config, options = MIXTURES[name]
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    with torch.device("meta"):
        model = getattr(transformers, name)(getattr(transformers, config)(**sizes, **heads, **options))
    experts = [n for n, p in model.named_parameters() if p.dim() == 3]
    if not experts:
        pytest.skip("this version of transformers holds experts as linear layers")
    (line,) = lines(model)
    for parameter in experts:
        assert parameter.replace(".0.", ".*.").replace(".1.", ".*.") in line
