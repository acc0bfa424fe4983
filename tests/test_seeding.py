"""Local generators: repeatable, independent of one another, and away from the global ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stochprune.seeding import generator


def test_an_address_always_gives_the_same_numbers() -> None:
    assert np.array_equal(
        generator(3, "shuffle", "fc1.weight").random(8), generator(3, "shuffle", "fc1.weight").random(8)
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0, "a"), (1, "a")),
        ((0, "a"), (0, "b")),
        ((0, "a", 0), (0, "a", 1)),
        ((0, "a"), (0, "a", 0)),
        ((0, "a", "b"), (0, "ab")),
        ((0, 1), (0, "1")),
        ((5,), (2**32 + 5,)),
    ],
)
def test_different_addresses_give_different_numbers(first: tuple, second: tuple) -> None:
    assert not np.array_equal(generator(*first).random(8), generator(*second).random(8))


def test_numbers_stay_as_they_were() -> None:
    # Runs are repeated from their seed alone, so this value is part of the interface.
    assert generator(0, "test").integers(2**32, size=3).tolist() == [2667116204, 842649082, 2416921408]


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, None])
def test_a_seed_out_of_range_is_named(seed: object) -> None:
    with pytest.raises(ValueError, match=rf"seed.*got {seed}"):
        generator(seed, "x")  # type: ignore[arg-type]


def test_global_generators_are_left_alone() -> None:
    of_torch, of_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    generator(0, "x").random(100)
    assert torch.equal(torch.get_rng_state(), of_torch)
    assert np.array_equal(np.random.get_state()[1], of_numpy)
