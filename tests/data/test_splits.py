"""The prior's part and the certifying part: disjoint, hashed, and scaled without a look at the latter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stochprune.data.splits import require_unseen, split


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
    """Its examples are replaced by others, before a scaling fitted on all: the prior's part stays as it is."""
    x, y = problem()
    first = split(x, y, 0.4)
    other = x.clone()
    other[torch.from_numpy(first.certify.indices)] *= 17
    rescaled = (other - other.mean()) / other.std()
    assert torch.allclose(split(rescaled, y, 0.4).prior.x, first.prior.x, atol=1e-5)


@pytest.mark.parametrize("fraction", [0.0, 0.4])
def test_a_scaling_of_each_channel_cancels_too(fraction):
    """As CIFAR-10 comes: standardised by channel over all examples, the certifying ones included."""
    numbers = torch.Generator().manual_seed(1)
    x, y = torch.rand(50, 3, 4, 4, generator=numbers) ** torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1), torch.arange(50)
    std, mean = torch.std_mean(x, (0, 2, 3), keepdim=True)
    raw, standardised = split(x, y, fraction), split((x - mean) / std, y, fraction)
    assert torch.allclose(raw.certify.x, standardised.certify.x, atol=1e-5)
    assert not torch.allclose(raw.scale, standardised.scale)


def test_a_data_free_split_has_the_range_of_pixels():
    parts = split(*problem(scale=7, shift=-2), 0.0)
    assert parts.prior is None and len(parts.certify) == 50
    assert (parts.certify.x.min(), parts.certify.x.max()) == (0, 1)


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
    with pytest.raises(ValueError, match=rf"{len(common)} of the 25 examples .* \(the first is number {common[0]}\)"):
        require_unseen(other.certify, [one.prior])
    inner, held = one.certify.split(0.2, 0, "choice")
    require_unseen(held, [one.prior, inner])
    with pytest.raises(ValueError, match="5 of the 25 examples"):
        require_unseen(one.certify, [one.prior, inner])
    with pytest.raises(ValueError, match="whether they share examples is unknown"):
        require_unseen(split(x + x.square(), y, 0.5).certify, [one.prior])


@pytest.mark.parametrize(
    ("fraction", "message"),
    [(1.0, "prior_fraction must lie in"), (-0.1, "must lie in"), (0.001, "leaves one part of 50 examples empty")],
)
def test_bad_fractions(fraction, message):
    with pytest.raises(ValueError, match=message):
        split(*problem(), fraction)


def test_constant_inputs():
    with pytest.raises(ValueError, match="constant"):
        split(torch.ones(10, 3), torch.zeros(10, dtype=torch.int64), 0.5)


def test_a_part_on_another_device_is_the_same_part():
    part = split(torch.arange(20.0).view(10, 2), torch.zeros(10, dtype=torch.int64), 0.5).certify
    there = part.to(torch.device("meta"))
    assert there.x.is_meta and there.y.is_meta and there.digest == part.digest
