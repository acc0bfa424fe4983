"""The geometry of a convolution: stride, padding, dilation, groups, and whether it is transposed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stochprune import rng

Sizes = int | Sequence[int]


class Geometry(NamedTuple):
    """The arguments of aten's convolution after the bias; each list has one number for each spatial dimension."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]
    groups: int

    def packed(self) -> list[int]:
        """Return one flat list, as the operators take it: each argument of an operator costs time in every call."""
        return [*self.stride, *self.padding, *self.dilation, *self.output_padding, int(self.transposed), self.groups]

    @classmethod
    def of(cls, packed: Sequence[int]) -> Geometry:
        """Return the geometry of a packed list."""
        n = len(packed) // 4
        parts = [list(packed[i * n : (i + 1) * n]) for i in range(4)]
        return cls(parts[0], parts[1], parts[2], bool(packed[-2]), parts[3], packed[-1])

    def channels(self, weight: Tensor) -> tuple[int, int]:
        """Return the numbers of input and output channels."""
        across = weight.shape[1] * self.groups
        return (weight.shape[0], across) if self.transposed else (across, weight.shape[0])

    def check_sizes(self, op: str, x: Sequence[int], kernel: Sequence[int]) -> None:
        """Raise ValueError if the result would be empty for these spatial sizes of x."""
        for n, k, s, p, d, extra in zip(x, kernel, *self[:3], self.output_padding, strict=True):
            if not self.transposed and not 1 <= d * (k - 1) + 1 <= n + 2 * p:
                raise ValueError(
                    f"{op}: weight's kernel {tuple(kernel)} with dilation {tuple(self.dilation)} does not fit x's "
                    f"spatial sizes {tuple(x)} with padding {tuple(self.padding)}"
                )
            if extra and extra >= max(s, d):
                raise ValueError(f"{op}: output_padding {self.output_padding} must be below stride or dilation")
            if self.transposed and (n - 1) * s - 2 * p + d * (k - 1) + extra + 1 < 1:
                raise ValueError(f"{op}: padding {self.padding} leaves nothing of x's spatial sizes {tuple(x)}")

    def positions(self, x: Sequence[int], kernel: Sequence[int]) -> int:
        """Return the number of spatial positions of the result for these spatial sizes of x."""
        count = 1  # torch.compile does not trace math.prod
        for n, k, s, p, d, extra in zip(x, kernel, *self[:3], self.output_padding, strict=True):
            reach = d * (k - 1) + 1
            count *= (n - 1) * s - 2 * p + reach + extra if self.transposed else (n + 2 * p - reach) // s + 1
        return count


class Convolution(NamedTuple):
    """The arguments of a convolution as the user gives them, not yet checked."""

    stride: Sizes = 1
    padding: Sizes | str = 0
    dilation: Sizes = 1
    groups: int = 1
    transposed: bool = False
    output_padding: Sizes = 0

    def checked(self, op: str, name: str, weight: Tensor) -> tuple[Geometry, list[int]]:
        """Return the geometry, and the padding that x needs first: one number for the end of each spatial dimension.

        Raises:
            TypeError, ValueError: a value that is not a size, an unknown padding, groups that do not fit.
        """
        if torch.compiler.is_compiling():
            return _checked(self, op, name, weight.shape)
        try:  # cached, since a layer gives the same values in every call; their types distinguish 1 from True
            return _cached(self, op, name, weight.shape, tuple(map(type, self)))
        except TypeError:  # a list is not hashable; any other TypeError is raised again below
            return _checked(self, op, name, weight.shape)


def _checked(given: Convolution, op: str, name: str, weight: Sequence[int]) -> tuple[Geometry, list[int]]:
    n = len(weight) - 2
    if not 1 <= n <= 3:
        raise ValueError(f"{op}: {name} must have 3, 4 or 5 dimensions, got shape {tuple(weight)}")
    groups = rng.integer(op, "groups", given.groups)
    stride, dilation = sizes(op, "stride", given.stride, n), sizes(op, "dilation", given.dilation, n)
    extra = [0] * n
    if isinstance(given.padding, str) and not given.transposed:
        padding, extra = _named_padding(op, given.padding, given.stride, dilation, weight[2:])
    else:
        padding = sizes(op, "padding", given.padding, n)
    output_padding = sizes(op, "output_padding", given.output_padding, n)
    if groups < 1 or not weight[0] or weight[0] % groups:
        raise ValueError(f"{op}: {name} {tuple(weight)} does not divide into {groups} groups")
    return Geometry(stride, padding, dilation, given.transposed, output_padding, groups), extra


@functools.lru_cache(maxsize=1024)
def _cached(
    given: Convolution, op: str, name: str, weight: torch.Size, types: tuple[type, ...]
) -> tuple[Geometry, list[int]]:
    return _checked(given, op, name, weight)


def sizes(op: str, name: str, value: Any, dimensions: int) -> list[int]:
    """Return a stride, padding or dilation as one integer for each dimension."""
    given: list[Any] = [*value] if isinstance(value, list | tuple) else [value]
    given *= dimensions if len(given) == 1 else 1
    least = int("padding" not in name)
    whole = (isinstance(n, int | torch.SymInt) and not isinstance(n, bool) for n in given)
    if len(given) != dimensions or not all(whole) or not (least <= min(given) and max(given) < 1 << 31):
        raise ValueError(f"{op}: {name} must be {dimensions} integers of at least {least}, got {value!r}")
    return given


def _named_padding(
    op: str, padding: str, given: Sizes, dilation: list[int], kernel: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return two lists for a padding given by name: the padding of both sides, and the extra padding of the end."""
    if padding not in ("same", "valid"):
        raise ValueError(f"{op}: padding must be numbers, 'same' or 'valid', got {padding!r}")
    if padding == "valid":
        return [0] * len(kernel), [0] * len(kernel)
    if max(sizes(op, "stride", given, len(kernel))) > 1:
        raise ValueError(f"{op}: padding 'same' needs stride 1, got {given}")
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return [t // 2 for t in total], [t % 2 for t in total]
