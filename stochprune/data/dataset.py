"""A labelled data set with a training and a test part."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stochprune.arguments import check_fields
from stochprune.runs.digests import tensor_digest


def check_examples(x: Tensor, y: Tensor, what: str) -> None:
    """Raise ``ValueError`` if there are no examples, if inputs and labels differ in number, or if an input is NaN."""
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
        raise ValueError(f"{what}: inputs {tuple(x.shape)} and labels {tuple(y.shape)} differ in length")
    if len(x) == 0:
        raise ValueError(f"{what}: there are no examples")
    bad = x.isnan().reshape(len(x), -1).any(dim=1)
    if bool(bad.any()):
        raise ValueError(
            f"{what}: {int(bad.sum())} of {len(x)} inputs hold NaN, the first is number {int(bad.nonzero()[0])}"
        )


@dataclass(frozen=True)
class Dataset:
    """A classification data set in memory.

    Attributes:
        name: the name of the data set.
        train_x, test_x: float32 [examples, *shape].
        train_y, test_y: int64 [examples], in 0 .. num_classes - 1.
        num_classes: number of classes.

    Raises:
        ValueError: wrong dtypes, no examples, lengths or shapes that differ, NaN inputs, labels out of range.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_classes: int

    def __post_init__(self) -> None:
        check_fields(self)
        for part, x, y in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            what = f"{self.name} ({part})"
            if x.dtype != torch.float32 or y.dtype != torch.int64:
                raise ValueError(f"{what}: inputs must be float32 and labels int64, got {x.dtype} and {y.dtype}")
            check_examples(x, y, what)
            low, high = int(y.min()), int(y.max())
            if low < 0 or high >= self.num_classes:
                raise ValueError(f"{what}: labels must lie in 0 .. {self.num_classes - 1}, got {low} .. {high}")
        if self.train_x.shape[1:] != self.test_x.shape[1:]:
            raise ValueError(
                f"{self.name}: training inputs {tuple(self.train_x.shape[1:])} and "
                f"test inputs {tuple(self.test_x.shape[1:])} differ in shape"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.train_x.shape[1:])

    def digest(self) -> str:
        """Hexadecimal digest of all examples and labels."""
        return tensor_digest(self.train_x, self.train_y, self.test_x, self.test_y)

    def to(self, device: torch.device) -> Dataset:
        """The data set with its tensors on a device."""
        names = ("train_x", "train_y", "test_x", "test_y")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})
