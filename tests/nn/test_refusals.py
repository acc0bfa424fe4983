"""The public names of stochprune.nn refuse bad arguments: the message names function, argument and value."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import nn

import stochprune as sp
from stochprune.nn import MaskedConv2d, MaskedEmbedding, MaskedLinear, MaskedModule, StructuredMaskedLinear
from stochprune.nn.layer import MaskedLayer
from tests.nn.zoo import make, numbers
from tests.refusals import Row, each_row

NAN = float("nan")
CONTEXTS = {"batched_samples", "fused_masking", "sampling", "without_masks"}


def dense() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).to_empty(device="cpu")


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3, device="meta"), nn.Linear(3, 3, device="meta"))
    model[1].weight = model[0].weight
    return model


def masked() -> nn.Module:
    return nn.Sequential(MaskedLinear(4, 3, stream=0), MaskedLinear(3, 2, stream=1))


def gated() -> nn.Module:
    return sp.nn.gate_branches(dense(), "1")


def mask(**options):
    return {"0.weight": torch.ones(3, 4, dtype=torch.bool), **options}


def prior(**options):
    return {"0.weight": 0.0, "1.weight": 0.0, **options}


def loss(model):
    return model(numbers(2, 4)).sum()


class Table(nn.Module):
    def forward(self, x):
        return x


class Doubled(MaskedLinear):
    dense_type = nn.Linear


class NoWeights(MaskedModule, Table):
    dense_type = Table
    weights = "table"


class NotDense(MaskedModule):
    dense_type = Table
    weights = ("table",)


class NoForward(MaskedLayer):
    dense_type = Table


TABLE: dict[str, list[Row]] = {
    "antithetic_gradients": [
        (("model", loss), {"draw": 0}, TypeError, "model .* str"),
        ((dense(), loss), {"draw": 0}, ValueError, "Sequential has no masked layer"),
        ((masked(), 3), {"draw": 0}, TypeError, "loss .* int"),
        ((masked(), loss), {"draw": 0, "estimator": "reinforce"}, ValueError, "'reinforce'"),
        ((masked(), loss), {"draw": -1}, ValueError, "draw .*-1"),
        ((masked(), loss), {"draw": 1.5}, TypeError, "draw .*1.5"),
        ((masked(), lambda m: m(numbers(2, 4))), {"draw": 0}, ValueError, r"loss .*\(2, 2\)"),
    ],
    "convert": [
        ((None,), {}, TypeError, "model .* NoneType"),
        ((masked(),), {}, ValueError, "masked already"),
        ((nn.Sequential(nn.ReLU()),), {}, ValueError, "Sequential has no linear"),
        ((dense(), [1]), {}, TypeError, "masks .* list"),
        ((dense(), {"2.weight": torch.ones(3, 4).bool()}), {}, ValueError, r"'2\.weight'"),
        ((dense(), {"0.weight": torch.ones(3, 4)}), {}, ValueError, r"0\.weight .*torch.float32"),
        ((dense(), {"0.weight": torch.ones(4, 3).bool()}), {}, ValueError, r"0\.weight .*\(4, 3\)"),
        ((dense(), {"0.weight": None}), {}, ValueError, r"0\.weight .*NoneType"),
        ((dense(), {}), {}, ValueError, "no layer"),
        ((dense(),), {"include": "encoder.*"}, ValueError, r"include 'encoder\.\*' .*[01]\.weight, [01]\.weight"),
        ((dense(),), {"exclude": "*"}, ValueError, r"exclude '\*'"),
        ((dense(),), {"include": 5}, TypeError, "include .*5"),
        ((dense(),), {"exclude": [nn.Linear(1, 1, device="meta")]}, TypeError, "exclude .*Linear"),
        *[
            ((dense(),), {argument: value}, ValueError, f"{argument} .*{value}")
            for argument in ("keep_kept", "keep_pruned")
            for value in (NAN, 0.0, 1.0, -0.5, math.inf)
        ],
        ((dense(),), {"keep_kept": "0.9"}, TypeError, "keep_kept .*'0.9'"),
        ((dense(),), {"keep_pruned": None}, TypeError, "keep_pruned .*None"),
        ((dense(),), {"pattern": 24}, TypeError, "pattern .*24"),
        ((dense(),), {"pattern": "2:3"}, ValueError, "2:3"),
        ((dense(),), {"pattern": "diagonal"}, ValueError, "'diagonal'"),
        ((dense(),), {"pattern": "5x5"}, ValueError, "5x5 .*3x4"),
        ((dense(),), {"seed": -3}, ValueError, "seed .*-3"),
        ((dense(),), {"seed": 1 << 64}, ValueError, f"seed .*{1 << 64}"),
        ((dense(),), {"seed": 1.5}, TypeError, "seed .*1.5"),
        ((dense(),), {"name": None}, TypeError, "name .*None"),
    ],
    "drop_branches": [
        ((3,), {}, TypeError, "model .* int"),
        ((dense(),), {}, ValueError, "Sequential has no gated branch"),
        ((make("gated branch")[0],), {}, ValueError, "gated branch itself"),
    ],
    "expected_cost": [
        ((3,), {}, TypeError, "model .* int"),
        ((dense(),), {}, ValueError, "Sequential has no gated branch"),
        ((gated(), [1.0]), {}, TypeError, "costs .* list"),
        ((gated(), {"1": NAN}), {}, ValueError, "costs .*nan"),
        ((gated(), {"1": 0.0}), {}, ValueError, "costs .*0.0"),
        ((gated(), {"2": 1.0}), {}, ValueError, "costs .*'2'"),
    ],
    "gate_branches": [
        (("model", "*"), {}, TypeError, "model .* str"),
        ((dense(), "layer*"), {}, ValueError, r"'layer\*'"),
        ((dense(), 5), {}, TypeError, "names .*5"),
        ((dense(), [1]), {}, TypeError, r"names .*\[1\]"),
        ((dense(), "0"), {"name": 1}, TypeError, "name .*1"),
    ],
    "harden": [
        ((None,), {}, TypeError, "model .* NoneType"),
        ((dense(),), {}, ValueError, "Sequential has no masked layer"),
        ((gated(),), {}, ValueError, "1 are gated branches"),
        ((masked(), "0.5"), {}, TypeError, "sparsity .*'0.5'"),
        ((masked(), NAN), {}, ValueError, "sparsity .*nan"),
        ((masked(), 1.0), {}, ValueError, "sparsity .*1.0"),
        ((masked(), -0.5), {}, ValueError, "sparsity .*-0.5"),
        ((masked(), None, "bogus"), {}, ValueError, "scope .*'bogus'"),
        ((make("n:m")[0], 0.5), {}, ValueError, "weight keeps a fixed number .*0.5"),
    ],
    "layer_kl": [
        (("model", {}), {}, TypeError, "model .* str"),
        ((dense(), {}), {}, ValueError, "Sequential has no masked layer"),
        ((masked(), 0.0), {}, TypeError, "prior_logits .* float"),
        ((masked(), {"0.weight": 0.0}), {}, ValueError, r"prior_logits .*1\.weight"),
        ((masked(), prior(x=0.0)), {}, ValueError, "'x'"),
    ],
    "batched_samples": [
        (("model", 2), {}, TypeError, "model .* str"),
        ((dense(), 2), {}, ValueError, "Sequential has no masked layer"),
        ((masked(), 0), {}, ValueError, "draws .*0"),
        ((masked(), 1.5), {}, TypeError, "draws .*1.5"),
        ((masked(), True), {}, TypeError, "draws .*True"),
    ],
    "masked_layers": [((None,), {}, TypeError, "model .* NoneType")],
    "fused_masking": [
        (("model",), {}, TypeError, "model .* str"),
        ((dense(),), {}, ValueError, "Sequential has no masked layer"),
    ],
    "without_masks": [
        (("model",), {}, TypeError, "model .* str"),
        ((dense(),), {}, ValueError, "Sequential has no masked layer"),
    ],
    "register": [
        (("Linear", MaskedLinear), {}, TypeError, "dense_type .*'Linear'"),
        ((nn.Linear, nn.Linear), {}, TypeError, "masked_type .*Linear"),
        ((MaskedLinear, MaskedConv2d), {}, TypeError, "dense_type .*MaskedLinear"),
        ((nn.Linear, MaskedConv2d), {}, ValueError, "MaskedConv2d .*dense_type = Linear"),
        ((nn.Linear, Doubled), {}, ValueError, "MaskedLinear .*Linear"),
        ((Table, NoWeights), {}, ValueError, "NoWeights .*weights .*'table'"),
        ((Table, NotDense), {}, ValueError, "NotDense .*Table"),
        ((Table, NoForward), {}, ValueError, "NoForward .*settings"),
    ],
    "sampling": [
        (("model",), {}, TypeError, "model .* str"),
        ((dense(),), {}, ValueError, "Sequential has no masked layer"),
        ((masked(), "no"), {}, TypeError, "enabled .*'no'"),
    ],
    "semi_structured": [
        (("model",), {}, TypeError, "model .* str"),
        ((nn.Sequential(),), {}, ValueError, "Sequential has 2:4 sparse weights"),
    ],
    "sparsify": [
        (("model",), {}, TypeError, "model .*'model'"),
        ((masked(),), {}, ValueError, r"weight .*harden\(model\)"),
    ],
    "add_lora": [
        (("model",), {}, TypeError, "model .*'model'"),
        ((dense(),), {"rank": 0}, ValueError, "rank .*0"),
        ((dense(), 2.5), {}, TypeError, "rank .*2.5"),
        ((dense(),), {"alpha": NAN}, ValueError, "alpha .*nan"),
        ((dense(),), {"dropout": 1.0}, ValueError, "dropout .*1.0"),
        ((dense(),), {"include": "2.*"}, ValueError, "include '2.*"),
        ((dense(),), {"exclude": "*"}, ValueError, "Sequential .*0.weight"),
        ((nn.Sequential(nn.ReLU()),), {}, ValueError, "Sequential"),
        ((tied(),), {}, ValueError, "1.weight .*0.weight"),
    ],
    "mask_units_by_input": [
        (("model", "*"), {}, TypeError, "model .*'model'"),
        ((dense(), "2.*"), {}, ValueError, "include '2.*"),
        ((dense(), "0.*"), {"exclude": "*"}, ValueError, "0.weight"),
        ((dense(), "0.*"), {"hidden": "4"}, TypeError, "hidden .*'4'"),
    ],
    "InputDependentMask": [
        ((nn.ReLU(),), {}, TypeError, "layer .*ReLU"),
        ((dense()[0], -1), {}, ValueError, "hidden .*-1"),
        ((dense()[0],), {"keep": 1.0}, ValueError, "keep .*1.0"),
        ((dense()[0],), {"estimator": "arm"}, ValueError, "'arm'"),
    ],
    "merge_lora": [((7,), {}, TypeError, "model .*int"), ((dense(),), {}, ValueError, "Sequential")],
    "SparseLoRALinear": [((masked()[0],), {}, TypeError, "linear .*MaskedLinear")],
    "SparseLinear": [
        (("4", 3), {}, TypeError, "in_features .*'4'"),
        ((1 << 17, 3), {}, ValueError, f"in_features .*{1 << 17}"),
        ((4, -3), {}, ValueError, "out_features .*-3"),
    ],
    "GatedBranch": [(("branch",), {}, TypeError, "branch .* str")],
}
SIZES = {"Conv1d": (1, 2, 2), "Conv2d": (1, 2, 2), "Conv3d": (1, 2, 2), "Linear": (8, 8), "Embedding": (4, 4)}
FROM_DENSE = {  # made from a dense module alone
    *("MaskedTransposedLinear", "NMMaskedTransposedLinear"),
    *(name for name in sp.nn.__all__ if name.startswith("Masked") and issubclass(getattr(sp.nn, name), MaskedModule)),
}
LAYERS = {
    name: next((size for end, size in SIZES.items() if name.endswith(end)), (1, 2, 2))
    for name in sp.nn.__all__
    if "Masked" in name and name not in FROM_DENSE
}
OPTIONS = [
    ({"keep": "0.5"}, TypeError, "keep .*'0.5'"),
    ({"keep": True}, TypeError, "keep .*True"),
    ({"keep": NAN}, ValueError, "keep .*nan"),
    ({"keep": 1.0}, ValueError, "keep .*1.0"),
    ({"keep": torch.full((3, 3), 0.5)}, ValueError, r"keep .*\(3, 3\)"),
    ({"estimator": "arm"}, ValueError, "'arm'"),
    ({"temperature": 0.0}, ValueError, "temperature .*0.0"),
    ({"temperature": "1"}, TypeError, "temperature .*'1'"),
    ({"seed": -1}, ValueError, "seed .*-1"),
    ({"seed": 1.5}, TypeError, "seed .*1.5"),
    ({"stream": 1 << 31}, ValueError, f"stream .*{1 << 31}"),
    ({"stream": 0.5}, TypeError, "stream .*0.5"),
]


@each_row(TABLE)
def test_refusals_of_functions(name, row):
    arguments, options, error, named = row
    name_or_op = "antithetic_gradients?" if name == "antithetic_gradients" else name  # the op speaks of its arguments
    with pytest.raises(error, match=rf"(?s){name_or_op}: .*{named}"):
        result = getattr(sp.nn, name)(*arguments, **options)
        if name in CONTEXTS:
            with result:
                pass


@pytest.mark.parametrize("options", OPTIONS, ids=lambda row: row[2])
@pytest.mark.parametrize("name", LAYERS)
def test_refusals_of_layers(name, options):
    given, error, named = options
    with pytest.raises(error, match=rf"{name}: .*{named}"):
        getattr(sp.nn, name)(*LAYERS[name], **given)


@pytest.mark.parametrize("name", [*LAYERS, *sorted(FROM_DENSE - {"MaskedModule"})])
def test_a_dense_layer_of_another_type_is_refused(name):
    kind = getattr(sp.nn, name)
    other = nn.LayerNorm(4)
    with pytest.raises(TypeError, match=rf"{name}: .*LayerNorm"):
        kind.from_dense(other)
    if name.startswith("MaskedConv2d"):
        with torch.device("meta"), pytest.raises(TypeError, match=r"torch.nn.Conv2d, got ConvTranspose2d"):
            kind.from_dense(nn.ConvTranspose2d(1, 2, 2))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: MaskedLinear.from_linear(nn.Conv2d(1, 2, 2, device="meta")), "MaskedLinear: .*Conv2d"),
        (lambda: MaskedConv2d.from_conv2d(nn.Linear(1, 2, device="meta")), "MaskedConv2d: .*Linear"),
        (lambda: MaskedEmbedding.from_embedding("table"), "MaskedEmbedding: .*str"),
        (lambda: sp.nn.NMMaskedLinear(8, 8, pattern=2), "NMMaskedLinear: pattern .*2"),
    ],
)
def test_named_constructors(call, named):
    with pytest.raises(TypeError, match=named):
        call()


@pytest.mark.parametrize("structure", ["16", "x", 5, "0x4", "3x3"])
def test_bad_structures(structure):
    with pytest.raises(ValueError, match=rf"StructuredMaskedLinear: .*{structure}"):
        StructuredMaskedLinear(4, 4, structure=structure)


def test_every_public_name_has_its_refusals():
    functions = {name for name in sp.nn.__all__ if inspect.isroutine(getattr(sp.nn, name))}
    classes = set(sp.nn.__all__) - functions
    assert functions - {"many_draws", "one_launch"} <= set(TABLE)  # aliases of an earlier version
    assert classes == {
        *LAYERS,
        *FROM_DENSE,
        "InputDependentMask",
        "SparseLinear",
        "SparseLoRALinear",
        "GatedBranch",
        "UnmaskedWeightsWarning",
    }
