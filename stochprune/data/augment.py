"""Random shifts and flips of images that depend only on the seed, the epoch and the batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from stochprune.arguments import checked
from stochprune.data.batches import Batches
from stochprune.seeding import generator


class Augmented:
    """Mini-batches whose images are shifted in both directions, and mirrored left to right with probability one half.

    The border is filled with the smallest value of all images, which is the background of digits.

    Args:
        batches: batches of images [B, channels, height, width].
        pixels: the largest shift, at least 0 and smaller than the images; with 0 images are not shifted.
        flip: whether to mirror images.
    """

    @checked
    def __init__(self, batches: Batches, pixels: int, flip: bool = False) -> None:
        if pixels < 0 or batches.x.dim() != 4 or pixels >= min(batches.x.shape[2:]):
            raise ValueError(
                f"images must be [B, C, H, W] and larger than the shift to be shifted by {pixels} pixels, "
                f"got {tuple(batches.x.shape)}"
            )
        self.batches, self.pixels, self.flip = batches, pixels, flip
        self.background = float(batches.x.min())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order, shifts and flips the next iteration uses."""
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        shifts = generator(self.batches.seed, "shift", self.batches.epoch)
        flips = generator(self.batches.seed, "flip", self.batches.epoch)
        for x, y in self.batches:
            moves = torch.from_numpy(shifts.integers(0, 2 * self.pixels + 1, (2, len(x))))
            x = shift(x, moves.to(x.device), self.pixels, self.background)
            if self.flip:
                mirrored = torch.from_numpy(flips.integers(0, 2, (len(x), 1, 1, 1))).bool().to(x.device)
                x = torch.where(mirrored, x.flip(3), x)
            yield x, y


def augmented(batches: Batches, pixels: int, flip: bool) -> Batches | Augmented:
    """Return batches with shifts of up to ``pixels`` and flips; the batches themselves if there are to be none."""
    return Augmented(batches, pixels, flip) if pixels or flip else batches


def shift(x: Tensor, moves: Tensor, pixels: int, background: float) -> Tensor:
    """Return windows of the padded images [B, C, H, W] with corners ``moves`` [2, B] in 0 .. 2 ``pixels``."""
    count, _, height, width = x.shape
    padded = torch.nn.functional.pad(x, (pixels,) * 4, value=background)
    rows = moves[0].view(-1, 1, 1, 1) + torch.arange(height, device=x.device).view(1, 1, -1, 1)
    columns = moves[1].view(-1, 1, 1, 1) + torch.arange(width, device=x.device).view(1, 1, 1, -1)
    images = torch.arange(count, device=x.device).view(-1, 1, 1, 1)
    channels = torch.arange(x.shape[1], device=x.device).view(1, -1, 1, 1)
    return padded[images, channels, rows, columns]
