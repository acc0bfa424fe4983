"""`convert` selects layers, and refuses others by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import stochprune as sp
from stochprune.models.transformer import Attention


def build(**modules: nn.Module) -> nn.Module:
    """A container of layers without numbers: the selection looks at none."""
    return nn.ModuleDict(modules)


@pytest.fixture(autouse=True)
def meta():
    with torch.device("meta"):  # constructors would draw from torch's global generator
        yield


def names(model: nn.Module) -> set[str]:
    return set(sp.nn.masked_layers(model))


def mixed() -> nn.Module:
    return build(
        stem=nn.Conv2d(3, 8, 3),
        body=nn.Sequential(nn.Conv1d(8, 8, 3), nn.BatchNorm1d(8), nn.Linear(8, 8)),
        attention=Attention(8, 2, causal=False),
        table=nn.Embedding(10, 8),
        up=nn.ConvTranspose2d(8, 3, 2),
    )


ALL = {"stem.weight", "body.0.weight", "body.2.weight", "attention.qkv.weight", "attention.proj.weight", "up.weight"}


def readable(value: object) -> str:
    """The name of a case: every process that collects the tests must find the same."""
    return str(sorted(value) if isinstance(value, set) else value)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, ALL),
        ({"include": "*"}, ALL | {"table.weight"}),
        ({"include": nn.Linear}, {"body.2.weight", "attention.qkv.weight", "attention.proj.weight"}),
        ({"include": [nn.Conv2d, "body.*"]}, {"stem.weight", "body.0.weight", "body.2.weight"}),
        ({"include": Attention}, {"attention.qkv.weight", "attention.proj.weight"}),
        ({"include": nn.Embedding}, {"table.weight"}),
        ({"exclude": [Attention, nn.modules.conv._ConvNd]}, {"body.2.weight"}),
        ({"include": nn.Linear, "exclude": "*.qkv.weight"}, {"body.2.weight", "attention.proj.weight"}),
        ({"exclude": ["stem*", nn.Sequential, "up.weight"]}, {"attention.qkv.weight", "attention.proj.weight"}),
    ],
    ids=readable,
)
def test_names_and_types(options, expected):
    model = sp.convert(mixed(), **options)
    assert names(model) == expected


def test_masks_of_what_is_masked_already_are_refused():
    model = sp.convert(mixed(), include="up.*")
    with pytest.raises(ValueError, match=r"up\.weight .*masked.*harden"):
        sp.convert(model, {"up.weight": torch.ones(8, 3, 2, 2, dtype=torch.bool)})


def test_masks_choose_and_may_name_embeddings():
    masks = {"table.weight": torch.ones(10, 8, dtype=torch.bool), "up.weight": torch.ones(8, 3, 2, 2, dtype=torch.bool)}
    assert names(sp.convert(mixed(), masks)) == set(masks)
    with pytest.raises(ValueError, match=r"'up\.weight'.* stem\.weight"):
        sp.convert(mixed(), masks, exclude=nn.ConvTranspose2d)


def tied() -> nn.Module:
    model = build(table=nn.Embedding(10, 8), body=nn.Linear(8, 8), head=nn.Linear(8, 10, bias=False))
    model["head"].weight = model["table"].weight
    return model


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, {"table.weight", "body.weight", "head.weight"}),
        ({"include": "head.*"}, {"table.weight", "head.weight"}),
        ({"include": nn.Embedding}, {"table.weight", "head.weight"}),
        ({"exclude": nn.Embedding}, {"body.weight"}),
        ({"exclude": "head.weight"}, {"body.weight"}),
    ],
    ids=readable,
)
def test_tied_weights_go_together(options, expected):
    model = sp.convert(tied(), **options)
    assert names(model) == expected
    if "head.weight" in expected:
        assert model["head"].mask_logits is model["table"].mask_logits
        assert model["head"].stream == model["table"].stream == sp.rng.stream("table.weight")
        assert model["head"].weight is model["table"].weight


def test_a_weight_tied_to_something_else_is_refused():
    model = build(fc=nn.Linear(8, 8), norm=nn.LayerNorm(8))
    model.shadow = model["fc"].weight
    with pytest.raises(ValueError, match=r"convert: fc\.weight .*tied.* shadow.*exclude"):
        sp.convert(model)
    model["other"] = nn.Linear(8, 8)
    assert names(sp.convert(model, exclude="fc.*")) == {"other.weight"}


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Slanted(nn.MultiheadAttention):
    def forward(self, query, key, value):
        return super().forward(query, key, value, attn_mask=torch.ones(len(query), len(query)).tril())


class Biased(nn.Linear):
    """Overrides nothing, and yet has a parameter that a masked layer would lose."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.scale = nn.Parameter(torch.ones(()))


def computed(weigh, kind=nn.Linear):
    layer = kind(8, 8)
    weigh(layer)
    return layer


def patched(layer):
    layer.forward = lambda x: x
    return layer


OBSTACLES = {
    "Scaled": (lambda: Scaled(8, 8), r"test_selection\.Scaled.* torch\.nn\.Linear .*forward.*allow_subclasses=True"),
    "Slanted": (lambda: Slanted(8, 2), r"Slanted.* torch\.nn\.MultiheadAttention .*forward.*register"),
    "Biased": (lambda: Biased(8, 8), r"Biased.* torch\.nn\.Linear with scale .*register"),
    "LazyLinear": (lambda: nn.LazyLinear(8), "once"),
    "ParametrizedLinear": (
        lambda: computed(parametrizations.weight_norm),
        "computed.*weight_norm, spectral_norm, prune",
    ),
    "Linear": (lambda: computed(lambda layer: prune.identity(layer, "weight")), "computed"),
    "LSTM": (lambda: computed(lambda layer: nn.utils.weight_norm(layer, "weight_hh_l0"), nn.LSTM), "computed"),
    "Conv1d": (lambda: nn.Conv1d(8, 8, 1, dtype=torch.complex64), "complex64.*two layers"),
    "Conv2d": (lambda: patched(nn.Conv2d(8, 8, 1)), "forward.*instance"),
}


@pytest.mark.parametrize("kind", OBSTACLES)
def test_layers_that_cannot_be_masked_are_refused_by_name_with_the_reason(kind):
    make, reason = OBSTACLES[kind]
    model = build(fc=nn.Linear(8, 8), block=nn.Sequential(make()))
    with pytest.raises(ValueError, match=rf"convert: block\.0 \({kind}\) .*{reason}.*exclude"):
        sp.convert(model)
    assert not names(model)
    layer = model["block"][0]
    weight = next(name for name, _ in layer.named_parameters())
    if kind != "LazyLinear":
        mask = {f"block.0.{weight}": torch.ones(2, 2, dtype=torch.bool)}
        with pytest.raises(ValueError, match=rf"block\.0\.{weight} .*block\.0 .*{reason}"):
            sp.convert(model, mask)
    assert names(sp.convert(model, {"fc.weight": torch.ones(8, 8, dtype=torch.bool)})) == {"fc.weight"}


@pytest.mark.parametrize("kind", OBSTACLES)
@pytest.mark.parametrize("by", ["name", "weight", "type"])
def test_excluded_layers_are_left_alone(kind, by):
    model = build(fc=nn.Linear(8, 8), block=nn.Sequential(OBSTACLES[kind][0]()))
    layer = model["block"][0]
    exclude = {"name": "block.*", "weight": "block.0.weight*", "type": nn.Sequential}[by]
    if by == "weight" and kind in ("Slanted", "LSTM"):
        exclude = "block.0.*weight*"
    assert names(sp.convert(model, exclude=exclude)) == {"fc.weight"}
    assert model["block"][0] is layer


def test_a_quantised_layer_is_refused():
    layer = nn.Linear(8, 8)
    layer.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"convert: fc \(Linear\) .*torch\.int8"):
        sp.convert(build(fc=layer))


def test_a_lone_layer_that_cannot_be_masked():
    with pytest.raises(ValueError, match=r"convert: the model \(LSTM\)"):
        sp.convert(OBSTACLES["LSTM"][0]())


def test_permanent_weights_are_taken_again():
    model = build(fc=computed(lambda layer: prune.identity(layer, "weight")))
    prune.remove(model["fc"], "weight")
    assert names(sp.convert(model)) == {"fc.weight"}
