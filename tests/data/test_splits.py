"""The prior's part and the certifying part: disjoint, hashed, and scaled without a look at the latter."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from stochprune.data import load, splits
from stochprune.data.splits import digests_of_split, require_unseen, split


def problem(count: int = 50, scale: float = 1.0, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 3, 3, generator=generator) * scale + shift, torch.arange(count) % 4


def test_parts_are_disjoint_and_complete():
    x, y = problem()
    parts = split(x, y, 0.4, seed=3)
    assert len(parts.prior) == 20 and len(parts.certify) == 30
    assert sorted([*parts.prior.indices, *parts.certify.indices]) == list(range(50))
    for part in (parts.prior, parts.certify):
        assert torch.equal(part.y, y[torch.from_numpy(part.indices)])
        assert torch.equal(part.x, parts.scaled(x)[torch.from_numpy(part.indices)])
    assert abs(parts.prior.x.mean()) < 1e-6 and abs(parts.prior.x.std() - 1) < 1e-6
    again = split(x, y, 0.4, seed=3)
    assert again.certify.digest == parts.certify.digest != parts.prior.digest
    assert split(x, y, 0.4, seed=4).certify.digest != parts.certify.digest


def test_nothing_of_the_certifying_part_reaches_the_prior():
    """Other certifying examples, replaced before a scaling over all of them, leave the prior's part as it is."""
    x, y = problem()
    first = split(x, y, 0.4)
    other = x.clone()
    other[torch.from_numpy(first.certify.indices)] *= 17
    rescaled = (other - other.mean()) / other.std()
    assert torch.allclose(split(rescaled, y, 0.4).prior.x, first.prior.x, atol=1e-5)


def test_a_scaling_of_each_channel_cancels_too():
    """CIFAR-10 is standardised by channel over all examples, the certifying ones included."""
    numbers = torch.Generator().manual_seed(1)
    x, y = torch.rand(50, 3, 4, 4, generator=numbers) ** torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1), torch.arange(50)
    std, mean = torch.std_mean(x, (0, 2, 3), keepdim=True)
    raw, standardised = split(x, y, 0.4), split((x - mean) / std, y, 0.4)
    assert torch.allclose(raw.certify.x, standardised.certify.x, atol=1e-5)
    assert not torch.allclose(raw.scale, standardised.scale)


def inputs(kind: str) -> torch.Tensor:
    """50 inputs of a kind, some of which no example of the first half has the like of."""
    x = torch.arange(50 * 6).view(50, 1, 2, 3) % 200
    return {"float32": x / 7 - 3, "float64": x.double() / 7, "uint8": x.to(torch.uint8), "tokens": x}[kind]


@pytest.mark.parametrize("kind", ["float32", "float64", "uint8", "tokens"])
@pytest.mark.parametrize("fraction", [0.0, 0.4])
def test_no_example_that_certifies_changes_the_inputs_of_others(kind, fraction):
    """Neither the values nor the range matter: one certifying example becomes larger than all others."""
    x, y = inputs(kind), torch.arange(50) % 4
    first = split(x, y, fraction, seed=1)
    changed, index = x.clone(), 7
    changed[first.certify.indices[index]] = 250
    second = split(changed, y, fraction, seed=1)
    others = torch.arange(len(first.certify)) != index
    assert torch.equal(first.certify.x[others], second.certify.x[others])
    assert not torch.equal(first.certify.x[index], second.certify.x[index])
    assert torch.equal(first.scaled(x[:5]), second.scaled(x[:5]))
    assert torch.equal(first.scaled(x)[torch.from_numpy(first.certify.indices)], first.certify.x)
    if fraction:
        assert torch.equal(first.prior.x, second.prior.x)
    elif kind == "uint8":  # pixels, over the largest value of the dtype
        assert torch.equal(first.certify.x, x.float() / 255)
    else:
        assert torch.equal(first.certify.x, x)
    if kind == "tokens":
        assert torch.equal(first.scaled(x), x)


@pytest.mark.parametrize("name", ["digits"])
def test_inputs_of_data_sets_without_statistics_are_pixels(name):
    dataset = load(name, standardised=False)
    pixels = dataset.train_x * {"digits": 16}[name]
    assert torch.equal(pixels, pixels.round()) and (pixels.min(), pixels.max()) == (0, 16)
    assert torch.equal(split(dataset.train_x, dataset.train_y, 0.0).certify.x, dataset.train_x)


def test_digests_change_with_the_data():
    x, y = problem()
    first = split(x, y, 0.5).certify
    assert split(x, y.flip(0), 0.5).certify.digest != first.digest
    x = x.clone()
    x[0, 0, 0, 0] += 1
    assert split(x, y, 0.5).certify.digest != first.digest


def test_seen_examples_are_refused():
    x, y = problem()
    one, other = split(x, y, 0.5, seed=0), split(x, y, 0.5, seed=1)
    require_unseen(one.certify, [one.prior])
    common = np.intersect1d(other.certify.indices, one.prior.indices)
    with pytest.raises(ValueError, match=rf"{len(common)} of the 25 examples .*\b{common[0]}\b"):
        require_unseen(other.certify, [one.prior])
    inner, held = one.certify.split(0.2, 0, "choice")
    require_unseen(held, [one.prior, inner])
    with pytest.raises(ValueError, match="5 of the 25 examples"):
        require_unseen(one.certify, [one.prior, inner])
    with pytest.raises(ValueError, match=rf"{one.prior.dataset[:12]}.*data set"):
        require_unseen(split(x + x.square(), y, 0.5).certify, [one.prior])


def test_no_example_of_a_part_counts_twice():
    part = split(*problem(), 0.4).certify
    with pytest.raises(ValueError, match=r"Subset: .*twice"):
        dataclasses.replace(part, x=part.x[[0, 0]], y=part.y[[0, 0]], indices=part.indices[[0, 0]])
    with pytest.raises(ValueError, match=r"Subset: .*\(30, 29, 30\)"):
        dataclasses.replace(part, y=part.y[1:])


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5])
def test_digests_of_a_split_without_its_examples(fraction):
    x, y = problem(51)
    parts = split(x, y, fraction, seed=3)
    found = [(part.digest, len(part)) for part in (parts.prior, parts.certify) if part is not None]
    assert digests_of_split(parts.certify.dataset, 51, fraction, 3) == found


@pytest.mark.parametrize(
    ("fraction", "message"),
    [(1.0, "prior_fraction.*got 1.0"), (-0.1, "prior_fraction.*got -0.1"), (0.001, "fraction.*0.001.*50 examples")],
)
def test_bad_fractions(fraction, message):
    with pytest.raises(ValueError, match=message):
        split(*problem(), fraction)


@pytest.mark.parametrize("value", [1.0, math.inf])
def test_inputs_without_a_deviation(value):
    with pytest.raises(ValueError, match=r"split: .*inputs"):
        split(torch.full((10, 3), value), torch.zeros(10, dtype=torch.int64), 0.5)


def test_a_part_on_another_device_is_the_same_part():
    part = split(torch.arange(20.0).view(10, 2), torch.zeros(10, dtype=torch.int64), 0.5).certify
    there = part.to(torch.device("meta"))
    assert there.x.is_meta and there.y.is_meta and there.digest == part.digest


def test_the_old_name_of_a_subset_is_deprecated():
    with pytest.warns(DeprecationWarning, match="Subset"):
        assert splits.Part is splits.Subset
