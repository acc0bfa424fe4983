"""The public functions of stochprune.masks refuse bad arguments: the message names function, argument and value."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from torch import nn

from stochprune import masks, models
from tests.refusals import each_row

NAN = float("nan")


def model() -> nn.Module:
    return models.mlp((4, 3, 2), seed=0)


def mask(shape=(3, 4), **others):
    return {"fc1.weight": torch.ones(shape, dtype=torch.bool), **others}


def score(**others):
    return {"a": torch.arange(8.0).view(2, 4), **others}


def on_models(*rest):
    """Return the bad calls of every function of a model and its masks."""
    return [
        (("model", mask(), *rest), {}, TypeError, "model .* str"),
        ((model(), [torch.ones(3, 4)], *rest), {}, TypeError, "masks .* list"),
        ((model(), {"fc9.weight": torch.ones(3, 4).bool()}, *rest), {}, ValueError, r"'fc9\.weight'"),
        ((model(), mask((4, 3)), *rest), {}, ValueError, r"fc1\.weight.* \(4, 3\)"),
    ]


WRONG_TYPES = [  # of masks
    ({"fc1.weight": torch.ones(3, 4)}, r"fc1\.weight .*float32"),
    ({"fc1.weight": [True]}, r"fc1\.weight .*list"),
]
SEEDS = [(1.5, "1.5"), (-1, "-1"), (1 << 64, str(1 << 64)), (None, "None"), (True, "True")]
TABLE = {
    "apply": [*on_models(), *[((model(), bad), {}, ValueError, named) for bad, named in WRONG_TYPES]],
    "expand": [*on_models(), *[((model(), bad), {}, TypeError, named) for bad, named in WRONG_TYPES]],
    "invert": [
        (([1.0],), {}, TypeError, "scores .* list"),
        (({},), {}, ValueError, "no scores"),
        ((score(b=torch.arange(4)),), {}, TypeError, "b .*int64"),
        ((score(b=torch.tensor([1, NAN])),), {}, ValueError, "1 of 2 scores of b are NaN"),
    ],
    "kept_weights": [*on_models(), *[((model(), bad), {}, ValueError, named) for bad, named in WRONG_TYPES]],
    "layer_statistics": [
        *on_models(),
        ((model(), mask(), {}), {}, ValueError, r"reference .*fc1\.weight"),
        ((model(), mask(), mask((4, 3))), {}, ValueError, r"\(4, 3\)"),
        ((model(), mask(), mask(), "other"), {}, TypeError, "model .* str"),
    ],
    "of": [
        (("model",), {}, TypeError, "model .* str"),
        ((nn.BatchNorm2d(3),), {}, ValueError, "BatchNorm2d"),
    ],
    "reinitialize": [*on_models(0), *[((model(), mask(), seed), {}, ValueError, f"seed .*{s}") for seed, s in SEEDS]],
    "rescale": [
        *on_models(),
        ((model(), {"fc1.weight": torch.zeros(3, 4).bool()}), {}, ValueError, r"fc1\.weight .*0 "),
    ],
    "shuffle": [
        (([True], 0), {}, TypeError, "masks .* list"),
        *[((bad, 0), {}, TypeError, named) for bad, named in WRONG_TYPES],
        *[((mask(), seed), {}, ValueError, f"seed .*{shown}") for seed, shown in SEEDS],
        (({}, 1.5), {}, ValueError, "seed .*1.5"),
    ],
    "sparsity": [
        (([True],), {}, TypeError, "masks .* list"),
        (({},), {}, ValueError, "no masks"),
        *[((bad,), {}, TypeError, named) for bad, named in WRONG_TYPES],
    ],
    "statistics": [
        (("fc", np.ones(7), (2, 3)), {}, ValueError, r"values of fc .*6 .*\(7,\)"),
        (("fc", [1.0], (2, 3)), {}, ValueError, "values of fc .*list"),
        (("fc", np.ones(3), (2, 3), np.ones((2, 3))), {}, ValueError, r"other of fc .*\(2, 3\)"),
    ],
    "n_of_m": [
        (([1.0], 2, 4), {}, TypeError, "scores .* list"),
        (({}, 2, 4), {}, ValueError, "no scores"),
        ((score(b=torch.arange(4)), 2, 4), {}, TypeError, "b .*int64"),
        ((score(b=torch.tensor([[NAN] * 4])), 2, 4), {}, ValueError, "4 of 4 scores of b are NaN"),
        ((score(), 3, 2), {}, ValueError, "n 3 and m 2"),
        ((score(), 1.5, 4), {}, ValueError, "n 1.5"),
        ((score(), True, 4), {}, ValueError, "n True"),
        ((score(), 2, "4"), {}, ValueError, "m '4'"),
        ((score(), 2, 3), {}, ValueError, "3 does not divide the 4 weights of a row of a"),
    ],
    "keep_probabilities": [
        *[((score(), keep), {}, ValueError, f"keep .*{keep}") for keep in (0.0, 1.0, NAN)],
        ((score(),), {"clamp": 0.0}, ValueError, r"clamp .*0\.0"),
        ((score(b=torch.tensor([1.0, float("inf")])),), {}, ValueError, "1 of 10 scores are infinite"),
        ((score(b=torch.tensor([1, NAN])),), {}, ValueError, "1 of 2 scores of b are NaN"),
        ((score(b=torch.arange(4)),), {}, TypeError, "b .*int64"),
        (({},), {}, ValueError, "no scores"),
        ((score(),), {"pattern": "diagonals"}, ValueError, "a: .*'diagonals'"),
        ((score(),), {"scope": "row"}, ValueError, "scope .*'row'"),
    ],
    "from_scores": [
        (([1.0], 0.5), {}, TypeError, "scores .* list"),
        (({}, 0.5), {}, ValueError, "no scores"),
        (({"a": torch.ones(0, 3)}, 0.5), {}, ValueError, "no scores"),
        ((score(b=[1.0]), 0.5), {}, TypeError, "b .*list"),
        ((score(b=torch.arange(4)), 0.5), {}, TypeError, "b .*int64"),
        ((score(b=torch.tensor([1, NAN])), 0.5), {}, ValueError, "1 of 2 scores of b are NaN"),
        *[((score(), bad), {}, ValueError, f"sparsity .*{bad}") for bad in (NAN, 1.0, 1.5, -0.1)],
        *[((score(), bad), {}, TypeError, f"sparsity .*{bad}") for bad in ("0.5", None, True)],
        ((score(), 0.5, "bogus"), {}, ValueError, "scope .*'bogus'"),
        ((score(), 0.5, None), {}, ValueError, "scope .*None"),
        ((score(), 0.5), {"pattern": "diagonals"}, ValueError, "a: .*'diagonals'"),
        ((score(), 0.5), {"pattern": 7}, ValueError, "a: .*7"),
        ((score(), 0.5), {"pattern": "3x2"}, ValueError, "a: .*3x2 .*2x4"),
        ((score(b=torch.zeros(4)), 0.5), {"pattern": "rows"}, ValueError, r"'rows' .*b is \(4,\)"),
        ((score(), 0.9), {"pattern": "2:4"}, ValueError, "2:4 .*0.5.* 0.9"),
        *[((score(), s, "row"), {"pattern": "rows"}, ValueError, "scope 'row' .*'rows'") for s in (0.4, 0.6)],
        ((score(), 0.5), {"ties": [1.0]}, TypeError, "ties .* list"),
        ((score(), 0.5), {"ties": {"b": torch.ones(2, 4)}}, ValueError, "ties .*a, b"),
        ((score(), 0.5), {"ties": {"a": torch.ones(4, 2)}}, ValueError, "ties .*a"),
        ((score(), 0.5), {"ties": {"a": torch.full((2, 4), NAN)}}, ValueError, "8 of 8 ties of a .*NaN"),
        ((score(b=torch.zeros(4)), 0.5), {}, ValueError, "b, .*scope='layer'"),
        ((score(b=torch.zeros(2)), 0.9, "layer"), {}, ValueError, "b.* 2 weights"),
    ],
}


@each_row(TABLE)
def test_refusals(name, row):
    arguments, options, error, named = row
    with pytest.raises(error, match=rf"{name}: .*{named}"):
        getattr(masks, name)(*arguments, **options)


def test_every_public_function_has_its_refusals():
    assert {name for name in masks.__all__ if inspect.isroutine(getattr(masks, name))} == set(TABLE)
