"""Batches: whole epochs, an order that is a function of seed and epoch, and errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stochprune.data import Batches


def numbers(count: int) -> tuple[Tensor, Tensor]:
    """Return inputs [count, 1] that equal their index, and the indices as labels."""
    return torch.arange(count).float().unsqueeze(1), torch.arange(count)


def order(batches: Batches) -> list[int]:
    return torch.cat([y for _, y in batches]).tolist()


@given(count=st.integers(1, 50), batch_size=st.integers(1, 60), shuffle=st.booleans())
def test_an_epoch_shows_each_example_once(count: int, batch_size: int, shuffle: bool) -> None:
    batches = Batches(*numbers(count), batch_size, 0, shuffle=shuffle)
    seen = list(batches)
    assert len(seen) == len(batches)
    assert all(len(x) == batch_size for x, _ in seen[:-1]) and 1 <= len(seen[-1][0]) <= batch_size
    assert all(torch.equal(x.squeeze(1).long(), y) for x, y in seen)
    assert sorted(order(batches)) == list(range(count))


@given(count=st.integers(1, 50), batch_size=st.integers(1, 50))
def test_drop_last_gives_full_batches_only(count: int, batch_size: int) -> None:
    if count < batch_size:
        with pytest.raises(ValueError, match=rf"drop_last.*{count} examples, batch_size {batch_size}"):
            Batches(*numbers(count), batch_size, 0, drop_last=True)
        return
    batches = Batches(*numbers(count), batch_size, 0, drop_last=True)
    assert [len(x) for x, _ in batches] == [batch_size] * (count // batch_size) == [batch_size] * len(batches)


def test_unshuffled_examples_come_as_they_lie() -> None:
    batches = Batches(*numbers(10), 4, 0, shuffle=False)
    assert order(batches) == list(range(10))


def test_order_is_a_function_of_seed_and_epoch() -> None:
    batches = Batches(*numbers(100), 7, seed=1)
    first = order(batches)
    assert order(batches) == first != list(range(100))
    batches.set_epoch(3)
    fourth = order(batches)
    assert fourth != first

    resumed = Batches(*numbers(100), 7, seed=1)
    resumed.set_epoch(3)
    assert order(resumed) == fourth
    assert order(Batches(*numbers(100), 7, seed=2)) != first


def test_order_does_not_depend_on_the_batch_size() -> None:
    assert order(Batches(*numbers(100), 7, seed=1)) == order(Batches(*numbers(100), 100, seed=1))


def test_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    order(Batches(*numbers(100), 7, seed=1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("x", "y", "batch_size", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(4), 1, r"inputs \(3, 2\) and labels \(4,\)"),
        (torch.zeros(0, 2), torch.zeros(0), 1, "examples"),
        (torch.tensor([[0.0], [torch.nan]]), torch.zeros(2), 1, r"1 of 2 inputs .*NaN.*\b1\b"),
        (torch.zeros(3, 2), torch.zeros(3), 0, "batch_size.*got 0"),
    ],
)
def test_layers_that_cannot_be_batched_are_named(x: Tensor, y: Tensor, batch_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batches(x, y, batch_size, 0)


def test_bad_seed_and_epoch_are_named() -> None:
    with pytest.raises(ValueError, match="got -1"):
        Batches(*numbers(3), 1, -1)
    with pytest.raises(ValueError, match=r"epoch.*got -2"):
        Batches(*numbers(3), 1, 0).set_epoch(-2)
