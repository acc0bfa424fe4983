"""Random shifts and flips."""

from __future__ import annotations

import pytest
import torch

from stochprune.data import Batches
from stochprune.data.augment import Augmented, shift


def images(count: int = 12) -> torch.Tensor:
    return torch.arange(count * 2 * 4 * 5, dtype=torch.float32).view(count, 2, 4, 5) - 7


def test_a_shift_moves_the_image_and_fills_with_the_background():
    x = images(1)
    moved = shift(x, torch.tensor([[0], [3]]), 2, -7.0)[0]  # two rows down, one column left
    assert torch.equal(moved[:, 2:, :4], x[0][:, :2, 1:])
    assert (moved[:, :2] == -7).all() and (moved[:, :, 4] == -7).all()
    assert torch.equal(shift(x, torch.tensor([[2], [2]]), 2, -7.0), x)


def test_shifts_are_a_function_of_seed_and_epoch():
    batches = Batches(images(), torch.arange(12), 5, seed=1)
    shifted = Augmented(batches, 1)
    first, again = [x for x, _ in shifted], [x for x, _ in shifted]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert [len(x) for x in first] == [5, 5, 2] and len(shifted) == 3
    shifted.set_epoch(1)
    assert not torch.equal(next(iter(shifted))[0], first[0])
    seen = {tuple(x.flatten().tolist()) for epoch in range(100) for x in _windows(shifted, epoch)}
    assert len(seen) == 9, "all nine shifts of the first image occur"


def _windows(shifted: Augmented, epoch: int) -> list[torch.Tensor]:
    shifted.set_epoch(epoch)
    return [image for x, y in shifted for image, label in zip(x, y, strict=True) if label == 0]


def test_flips_mirror_half_of_the_images_and_leave_the_shifts():
    batches = Batches(images(400), torch.arange(400), 100, seed=1)
    plain, flipped = Augmented(batches, 1), Augmented(batches, 1, flip=True)
    pairs = [(a, b) for (x, _), (z, _) in zip(plain, flipped, strict=True) for a, b in zip(x, z, strict=True)]
    mirrored = [torch.equal(a.flip(2), b) for a, b in pairs]
    assert all(m or torch.equal(a, b) for m, (a, b) in zip(mirrored, pairs, strict=True))
    assert 160 < sum(mirrored) < 240
    again = torch.cat([x for x, _ in flipped])
    assert torch.equal(again, torch.stack([b for _, b in pairs]))


@pytest.mark.parametrize("pixels", [-1, 4])
def test_bad_shifts(pixels):
    with pytest.raises(ValueError, match=f"shifted by {pixels} pixels"):
        Augmented(Batches(images(), torch.arange(12), 5), pixels)
