"""Mini-batches of tensors in memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from stochprune.arguments import checked
from stochprune.data.dataset import check_examples
from stochprune.seeding import generator


class Batches:
    """Iterates over (x, y) in mini-batches.

    The order depends only on ``seed`` and the epoch. Iterating twice gives the same batches until :meth:`set_epoch` is
    called, and a resumed run sees the same batches as an uninterrupted run.

    Args:
        x: inputs [examples, ...].
        y: targets [examples, ...].
        batch_size: examples in a batch; the last one may be smaller.
        seed: 0 .. 2^64 - 1.
        shuffle: False keeps the order of ``x`` in every epoch.
        drop_last: leave out the last batch if it is smaller.

    Raises:
        ValueError: no examples or no batch, lengths that differ, NaN inputs, a batch size or epoch out of range.
    """

    @checked
    def __init__(
        self, x: Tensor, y: Tensor, batch_size: int, seed: int = 0, *, shuffle: bool = True, drop_last: bool = False
    ) -> None:
        check_examples(x, y, "Batches")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if drop_last and len(x) < batch_size:
            raise ValueError(f"drop_last leaves no batch: {len(x)} examples, batch_size {batch_size}")
        generator(seed)  # an invalid seed raises here, not in the first epoch
        self.x, self.y = x, y
        self.batch_size, self.seed, self.shuffle, self.drop_last = batch_size, seed, shuffle, drop_last
        self.epoch = 0

    @checked
    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order the next iteration uses."""
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0, got {epoch}")
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(len(self.x), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self.shuffle:
            order = torch.arange(len(self.x))
        else:
            order = torch.from_numpy(generator(self.seed, "batches", self.epoch).permutation(len(self.x)))
        order = order.to(self.x.device)
        for chosen in order.split(self.batch_size)[: len(self)]:
            yield self.x.index_select(0, chosen), self.y.index_select(0, chosen)
