"""Examples of each class, and smaller training sets."""

from __future__ import annotations

import pytest
import torch

from stochprune import data


@pytest.fixture(scope="module")
def digits():
    return data.digits()


def test_each_class_gives_as_many_examples_none_twice(digits):
    x, y = data.per_class(digits, 7, seed=1)
    assert x.shape == (70, 1, 8, 8) and y.bincount().tolist() == [7] * 10
    rows = {(*row.flatten().tolist(), int(label)) for row, label in zip(x, y, strict=True)}
    assert len(rows) == 70
    assert rows <= {
        (*row.flatten().tolist(), int(label)) for row, label in zip(digits.train_x, digits.train_y, strict=True)
    }
    assert y.tolist() != sorted(y.tolist())


def test_they_are_a_function_of_the_seed(digits):
    first, again, other = (data.per_class(digits, 3, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_subset_keeps_the_test_set(digits):
    part = data.subset(digits, 100)
    assert len(part.train_y) == 100 and part.test_x is digits.test_x
    assert torch.equal(part.train_x, data.subset(digits, 100).train_x)
    assert data.subset(digits, 0) is digits
    whole = {tuple(row.flatten().tolist()) for row in digits.train_x}
    assert all(tuple(row.flatten().tolist()) in whole for row in part.train_x)


def test_bad_numbers_are_named(digits):
    with pytest.raises(ValueError, match=r"digits: 500 examples.*class 0 has"):
        data.per_class(digits, 500, 0)
    with pytest.raises(ValueError, match="got 0"):
        data.per_class(digits, 0, 0)
    for number in (-1, 2000):
        with pytest.raises(ValueError, match=rf"digits .*1437 .* {number}\b"):
            data.subset(digits, number)
