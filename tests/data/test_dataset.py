"""Dataset: what it refuses."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from stochprune.data import Dataset

GOOD = Dataset(
    name="toy",
    train_x=torch.zeros(6, 1, 2, 3),
    train_y=torch.tensor([0, 1, 2, 0, 1, 2]),
    test_x=torch.zeros(2, 1, 2, 3),
    test_y=torch.tensor([2, 0]),
    num_classes=3,
)
NAN_IN_FOURTH = torch.zeros(6, 1, 2, 3)
NAN_IN_FOURTH[3, 0, 1, 1] = torch.nan


def test_shape_is_that_of_one_input() -> None:
    assert GOOD.shape == (1, 2, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train_x": torch.zeros(5, 1, 2, 3)},
            r"toy \(train\): inputs \(5, 1, 2, 3\) and labels \(6,\)",
        ),
        ({"test_y": torch.tensor([0])}, r"toy \(test\): inputs .* and labels \(1,\)"),
        ({"test_x": torch.zeros(0, 1, 2, 3), "test_y": torch.zeros(0).long()}, r"toy \(test\): .*examples"),
        ({"train_x": NAN_IN_FOURTH}, r"toy \(train\): 1 of 6 inputs .*NaN.*\b3\b"),
        ({"test_y": torch.tensor([0, 3])}, r"toy \(test\): labels.*got 0 .. 3"),
        ({"test_y": torch.tensor([-1, 0])}, "labels.*got -1 .. 0"),
        ({"test_y": torch.tensor([0, 1], dtype=torch.int32)}, r"labels .*got torch\.float32 and torch\.int32"),
        ({"train_x": torch.zeros(6, 1, 2, 3).double()}, "inputs.*got torch.float64"),
        (
            {"test_x": torch.zeros(2, 1, 3, 3)},
            r"training inputs \(1, 2, 3\) and test inputs \(1, 3, 3\)",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(GOOD, **change)
