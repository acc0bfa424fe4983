"""Random shifts and flips of images, functions of the seed, the epoch and the batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from stochprune.arguments import checked
from stochprune.data.batches import Batches
from stochprune.seeding import generator


class Augmented:
    """Mini-batches whose images are each shifted in both directions, and mirrored left to right half of the time.

    The rim is filled with the smallest value of all the images, which is the background of digits.

    Args:
        batches: of images [B, channels, height, width].
        pixels: the largest shift, at least 0, and smaller than the images; 0 leaves them where they are.
        flip: whether to mirror images.
    """

    @checked
    def __init__(self, batches: Batches, pixels: int, flip: bool = False) -> None:
        if pixels < 0 or batches.x.dim() != 4 or pixels >= min(batches.x.shape[2:]):
            raise ValueError(f"{tuple(batches.x.shape)} are no images, or cannot be shifted by {pixels} pixels")
        self.batches, self.pixels, self.flip = batches, pixels, flip
        self.background = float(batches.x.min())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order, shifts and flips the next iteration takes."""
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


def shift(x: Tensor, moves: Tensor, pixels: int, background: float) -> Tensor:
    """Windows of the padded images [B, C, H, W], whose corners are ``moves`` [2, B], in 0 .. 2 ``pixels``."""
    count, _, height, width = x.shape
    padded = torch.nn.functional.pad(x, (pixels,) * 4, value=background)
    rows = moves[0].view(-1, 1, 1, 1) + torch.arange(height, device=x.device).view(1, 1, -1, 1)
    columns = moves[1].view(-1, 1, 1, 1) + torch.arange(width, device=x.device).view(1, 1, 1, -1)
    images = torch.arange(count, device=x.device).view(-1, 1, 1, 1)
    channels = torch.arange(x.shape[1], device=x.device).view(1, -1, 1, 1)
    return padded[images, channels, rows, columns]
