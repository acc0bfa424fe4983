"""Splits of a training set into the part that a prior may see and the part that certifies, with digests of both."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from stochprune.arguments import checked
from stochprune.data.batches import Batches
from stochprune.data.dataset import check_examples
from stochprune.runs.digests import tensor_digest
from stochprune.seeding import generator

_PATH = ("split", "prior")
"""Purpose of the random numbers that choose the prior's part, see :func:`stochprune.seeding.generator`."""


@dataclass(frozen=True, eq=False)
class Subset:
    """A part of a data set that knows which examples it contains.

    Attributes:
        x, y: the examples [m, ...] and labels [m].
        indices: int64 [m], their indices in the data set, ascending.
        dataset: digest of the whole data set at the time of the split.

    Raises:
        ValueError: an example that counts twice, or other numbers of examples, labels and indices.
    """

    x: Tensor
    y: Tensor
    indices: np.ndarray
    dataset: str

    def __post_init__(self) -> None:
        sizes = len(self.x), len(self.y), len(self.indices)
        if len(set(sizes)) > 1:
            raise ValueError(f"Subset: x, y and indices must be of the same examples, got {sizes} of them")
        if not bool((np.diff(self.indices) > 0).all()):
            raise ValueError("Subset: indices must be ascending, and no example may count twice")

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def digest(self) -> str:
        """Hexadecimal digest of the data set and of the index set."""
        return _digest(self.dataset, self.indices)

    def batches(self, batch_size: int, seed: int = 0) -> Batches:
        """Mini-batches of the part in a seeded order."""
        return Batches(self.x, self.y, batch_size, seed)

    def to(self, device: torch.device) -> Subset:
        """The part with its examples on a device; its digest is the same."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))

    def split(self, fraction: float, seed: int, *path: str) -> tuple[Subset, Subset]:
        """Split at random into two parts, the first with ``fraction`` of the examples; ``path`` names the purpose."""
        first, second = _cut(len(self), fraction, seed, "split", *path)
        return self._take(first), self._take(second)

    def _take(self, chosen: np.ndarray) -> Subset:
        at = torch.from_numpy(chosen)
        return Subset(self.x[at], self.y[at], self.indices[chosen], self.dataset)


@dataclass(frozen=True, eq=False)
class Split:
    """A training set in two parts.

    Attributes:
        prior: the prior's part; None for a data-free prior.
        certify: the part that certifies.
        shift, scale: float64 shift and scale of the inputs, one per channel of images, see :func:`split`.
    """

    prior: Subset | None
    certify: Subset
    shift: Tensor
    scale: Tensor

    def scaled(self, x: Tensor) -> Tensor:
        """Scale other inputs of the same data set, for example test inputs, in the same way as the parts."""
        return _scaled(x, self.shift, self.scale)


@checked
def split(x: Tensor, y: Tensor, prior_fraction: float, seed: int = 0) -> Split:
    """Divide a training set at random into the prior's part and the part that certifies.

    The inputs are standardised with statistics of the prior's part only: to mean 0 and standard deviation 1 over each
    channel of its images [m, C, H, W], or over all numbers of other inputs. If the prior has no part, nothing may be
    learnt from the inputs, not even their range, and they are not scaled. uint8, the dtype of pixels, is divided by 255
    first in both cases. Other integers, such as tokens, are categories and never scaled.

    Give inputs that were not standardised before (``data.load(name, standardised=False)``): statistics over all
    examples have seen the certifying examples. With a prior's part, an earlier affine scaling of the same kind cancels
    up to rounding. Without one it stays, and the prior is then not free of the data.

    Args:
        x, y: examples and labels.
        prior_fraction: fraction of the examples for the prior, in [0, 1). 0 is a data-free prior.
        seed: 0 .. 2^64 - 1.

    Raises:
        TypeError: an argument of another type.
        ValueError: bad examples, a fraction outside [0, 1) or one that leaves either part empty, inputs of the prior's
            part that are constant or not finite.
    """
    check_examples(x, y, "split")
    if not 0 <= prior_fraction < 1:
        raise ValueError(f"split: prior_fraction must lie in [0, 1), got {prior_fraction}")
    whole = Subset(x, y, np.arange(len(x)), tensor_digest(x, y))
    prior, rest = whole.split(prior_fraction, seed, *_PATH[1:]) if prior_fraction else (None, whole)
    shift, scale = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    if prior is not None and (numbers := _numbers(prior.x)).is_floating_point():
        axes = (0, 2, 3) if x.ndim == 4 else tuple(range(x.ndim))  # images: each channel separately
        scale, shift = torch.std_mean(numbers.double(), axes, keepdim=True)
        if not bool(((scale > 0) & scale.isfinite()).all()):
            raise ValueError("split: the inputs of the prior's part are constant or not finite; leave them out")
    parts = [None if part is None else replace(part, x=_scaled(part.x, shift, scale)) for part in (prior, rest)]
    return Split(parts[0], cast(Subset, parts[1]), shift, scale)


def require_unseen(part: Subset, seen: Iterable[Subset]) -> None:
    """Raise if the prior, or a choice that changed it, has seen an example of this part.

    Raises:
        ValueError: a common example, or a part of another data set, whose examples cannot be compared.
    """
    for other in seen:
        if other.dataset != part.dataset:
            raise ValueError(
                f"the prior saw a part of data set {other.dataset[:12]}, but the certificate is for data set "
                f"{part.dataset[:12]}: they may share examples. Split one data set once"
            )
        common = np.intersect1d(part.indices, other.indices)
        if len(common):
            raise ValueError(
                f"{len(common)} of the {len(part)} examples of the certificate were seen by the prior or by a choice "
                f"(the first is number {common[0]}): a bound on them does not hold"
            )


def digests_of_split(dataset: str, count: int, prior_fraction: float, seed: int) -> list[tuple[str, int]]:
    """Digest and number of examples of the parts that :func:`split` makes, without the examples.

    Args:
        dataset: digest of the whole data set.
        count: number of its examples.

    Returns:
        The pairs of the prior's part, if there is one, and of the part that certifies.

    Raises:
        ValueError: as for :func:`split`.
    """
    parts = _cut(count, prior_fraction, seed, *_PATH) if prior_fraction else (np.arange(count),)
    return [(_digest(dataset, indices), len(indices)) for indices in parts]


def _digest(dataset: str, indices: np.ndarray) -> str:
    return hashlib.blake2s(dataset.encode() + indices.astype("<i8").tobytes()).hexdigest()


def _cut(count: int, fraction: float, *path: str | int) -> tuple[np.ndarray, np.ndarray]:
    first = round(fraction * count)
    if not 0 < first < count:
        raise ValueError(f"a fraction of {fraction} leaves one part of {count} examples empty")
    order = generator(*path).permutation(count)  # type: ignore[arg-type]
    return np.sort(order[:first]), np.sort(order[first:])


def _numbers(x: Tensor) -> Tensor:
    return x.float() / 255 if x.dtype == torch.uint8 else x


def _scaled(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    x = _numbers(x)
    return ((x.double() - shift) / scale).to(x.dtype) if x.is_floating_point() else x


def __getattr__(name: str) -> type[Subset]:
    """Return the class under its old name."""
    if name == "Part":
        warnings.warn("stochprune.data.splits.Part is now called Subset", DeprecationWarning, stacklevel=2)
        return Subset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
