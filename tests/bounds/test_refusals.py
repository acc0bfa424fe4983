"""Every argument of every bound refuses bad values, and takes the numbers of other libraries like Python's own."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch

from stochprune import bounds

NAN, INF = math.nan, math.inf
# A call of each public function that it takes; a function without a row fails the tests below.
GOOD = {
    "kl": {"q": 0.1, "p": 0.2},
    "kl_inverse": {"q": 0.1, "c": 0.2},
    "monte_carlo": {"mean": 0.1, "draws": 100, "delta": 0.05, "choices": 3},
    "betting": {"values": [0.1, 0.2, 0.3], "delta": 0.05, "choices": 3, "planned": 5},
    "complexity": {"kl": 1.0, "m": 100, "delta": 0.05, "choices": 3},
    "maurer": {"risk": 0.1, "kl": 1.0, "m": 100, "delta": 0.05, "choices": 3},
    "mcallester": {"risk": 0.1, "kl": 1.0, "m": 100, "delta": 0.05, "choices": 3},
    "quadratic": {"risk": 0.1, "kl": 1.0, "m": 100, "delta": 0.05, "choices": 3},
    "tolstikhin_seldin": {"risk": 0.1, "kl": 1.0, "m": 100, "delta": 0.05, "choices": 3},
    "lam": {"risk": 0.1, "kl": 1.0, "m": 100, "delta": 0.05, "lam": 0.5, "choices": 3},
    "optimal_lambda": {"risk": 0.1, "kl": 1.0, "m": 100, "delta": 0.05, "choices": 3},
    "catoni": {"risk": 0.1, "kl": 1.0, "m": 100, "delta": 0.05, "beta": 2.0, "choices": 3},
    "chernoff": {"risk": 0.1, "m": 100, "delta": 0.05, "choices": 3},
}
NO_VALUES = [torch.tensor([0.1], device="meta"), torch.tensor([0.1]).to_sparse()]
NO_NUMBER = [NAN, -INF, "0.1", None, [0.1], 0.1j, True, torch.tensor([0.1, 0.2]), torch.tensor(NAN), torch.tensor(0.1j)]
NO_NUMBER += NO_VALUES
COUNT = [0, -5, 1.5, 3.0, INF, 10**400, np.float64(3.0), np.bool_(True), *NO_NUMBER]
SHARE = [-0.1, 1.0000001, INF, *NO_NUMBER]
NATS = [-1e-9, 10**400, *NO_NUMBER]
BAD = {
    **dict.fromkeys(("q", "p", "risk", "mean"), SHARE),
    **dict.fromkeys(("c", "kl"), NATS),
    **dict.fromkeys(("m", "draws", "choices"), COUNT),
    "planned": [value for value in COUNT if value is not None],  # its default
    "delta": [0.0, 1.0, -0.1, INF, *NO_NUMBER],
    "lam": [0.0, 2.0, -1.0, INF, *NO_NUMBER],
    "beta": [0.0, -1.0, INF, *NO_NUMBER],
    "values": [
        *(np.array([0.1, bad]) for bad in (1.2, -0.1, NAN, INF)),
        [0.1, NAN],
        torch.tensor([0.1, NAN]),
        torch.tensor([0.1, 0.2], dtype=torch.complex64),
        *NO_VALUES,
        [],
        [[0.1], [0.2]],
        [[0.1], [0.2, 0.3]],
        ["0.1", "0.2"],
        [0.1, None],
        0.1,
        None,
    ],
}


def parameters(name: str) -> list[str]:
    return list(inspect.signature(getattr(bounds, name)).parameters)


@pytest.mark.parametrize("name", bounds.__all__)
def test_every_argument_is_in_the_table(name):
    assert sorted(GOOD[name]) == sorted(parameters(name)) and set(GOOD[name]) <= set(BAD)
    assert math.isfinite(getattr(bounds, name)(**GOOD[name]))


@pytest.mark.parametrize(("name", "argument"), [(name, each) for name in bounds.__all__ for each in parameters(name)])
def test_refused(name, argument):
    for bad in BAD[argument]:
        with pytest.raises(ValueError) as refusal:
            getattr(bounds, name)(**GOOD[name] | {argument: bad})
        assert f"bounds.{name}: {argument} " in str(refusal.value), bad


@pytest.mark.parametrize("name", bounds.__all__)
def test_numbers_of_numpy_count_as_pythons(name):
    """Small integers would overflow in 2 * choices, small floats round inward."""
    counts = {"m": 100, "draws": 100, "choices": 200, "planned": 200}
    shares = {"risk": 0.25, "mean": 0.25, "q": 0.25, "kl": 3.0, "c": 0.5, "delta": 0.125, "p": 0.5}
    python, numpy = dict(GOOD[name]), dict(GOOD[name])
    for argument in GOOD[name]:
        if argument in counts:
            python[argument], numpy[argument] = counts[argument], np.uint8(counts[argument])
        elif argument in shares:
            python[argument], numpy[argument] = shares[argument], np.float16(shares[argument])
    found = getattr(bounds, name)(**numpy)
    assert type(found) is float and found == getattr(bounds, name)(**python)


def test_losses_of_every_kind():
    values = [0.0, 1.0, 0.25, 0.5]
    expected = bounds.betting(np.array(values), 0.05)
    kinds = (values, tuple(values), np.float32(values), torch.tensor(values), torch.tensor(values, requires_grad=True))
    assert {bounds.betting(kind, 0.05) for kind in kinds} == {expected}
    assert bounds.betting(torch.tensor(values, dtype=torch.bfloat16), 0.05) == expected
    assert bounds.betting([0, 1, 1], 0.05) == bounds.betting([False, True, True], 0.05)
