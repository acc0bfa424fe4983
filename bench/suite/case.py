"""A case, and its contenders."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PARTS = ("forward", "backward", "step")
SMALL = 48
"""The largest size of a small case."""


class Absent(Exception):
    """A contender cannot take part here; the message says why, such as a package that is not installed."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One op at one shape.

    Attributes:
        group: the table in which it stands, such as ``ops``.
        op: a key of :data:`.ops.OPS`.
        shape: sizes by name, such as ``{"rows": 4096, "cols": 4096, "tokens": 128}``.
        dtype: of weights and activations, a key of :data:`DTYPES`.
        mode: ``joint`` trains weights and logits, ``mask-only`` the logits.
        parts: what is timed: a forward pass (with its graph), a backward pass, a step (both).
    """

    group: str
    op: str
    shape: Mapping[str, int]
    dtype: str = "float32"
    mode: str = "joint"
    parts: tuple[str, ...] = ("forward", "step")

    @property
    def name(self) -> str:
        """The text that identifies the case, see :func:`case_name`."""
        return case_name(self.group, self.op, self.shape, self.dtype, self.mode)

    def small(self) -> Case:
        """Return the case with sizes of at most :data:`SMALL`, for a quick look."""
        return dataclasses.replace(self, shape={name: min(size, SMALL) for name, size in self.shape.items()})


@dataclasses.dataclass
class Way:
    """One contender of a case, ready to run.

    Attributes:
        forward: computes the output, which has a graph if something is trained.
        tensors: by name, those that exist anyway, such as inputs and weights: they are not counted as saved for
            backward. A backward pass computes the gradients of those that require one.
        grad: the gradient of the output, of its shape; None for a scalar.
        weights: number of weights, by which bytes are divided.
        within: a context around each call, for a contender that is one of several routes of the same function.
        countable: False if this context has hooks of its own for what is saved for backward, so nothing can count it.
    """

    forward: Callable[[], Tensor]
    tensors: Mapping[str, Tensor]
    grad: Tensor | None
    weights: int
    within: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    countable: bool = True

    @property
    def trained(self) -> dict[str, Tensor]:
        """The tensors whose gradients a backward pass computes, by name."""
        return {name: tensor for name, tensor in self.tensors.items() if tensor.requires_grad}

    def backward(self, y: Tensor, retain: bool = False) -> dict[str, Tensor]:
        """Return the gradients of the trained tensors by name; the caller frees them, as ``zero_grad`` does."""
        trained = self.trained
        found = torch.autograd.grad(y, [*trained.values()], self.grad, retain_graph=retain)
        return dict(zip(trained, found, strict=True))

    def part(self, name: str) -> Callable[[], object]:
        """Return the function that is timed for a part."""
        if name == "forward":
            run: Callable[[], object] = self.forward
        elif name == "step":
            run = lambda: self.backward(self.forward())  # noqa: E731
        else:
            with self.within():
                y = self.forward()
            run = lambda: self.backward(y, retain=True)  # noqa: E731
        if self.within is contextlib.nullcontext:
            return run

        def inside() -> object:
            with self.within():
                return run()

        return inside


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of a check.

    Attributes:
        wrong: the first thing that is wrong; None if all is right.
        bits_equal: True if all sampled masks have the contract's bits; None for a contender with another generator.
    """

    wrong: str | None
    bits_equal: bool | None = None


@dataclasses.dataclass(frozen=True)
class Work:
    """The least that any way has to do: floating-point operations of products, and bytes read and written once."""

    flops: float
    bytes: float


class Op(Protocol):
    """An op of the suite.

    Attributes:
        baseline: the contender without masks, the floor; an empty text if there is none.
        laws: what each contender samples, by its name: contenders of one law compute the same distribution, so that
            their times compare. The contenders of this package are called ``ours``, with a comma if there are several,
            such as ``ours, one by one``; the usual way to write a law in PyTorch is called ``eager`` likewise.
    """

    baseline: str
    laws: Mapping[str, str]

    def make(self, contender: str, case: Case, device: torch.device) -> Way:
        """Return a contender.

        Raises:
            Absent: it cannot take part here.
        """

    def check(self, contender: str, case: Case, device: torch.device) -> Verdict:
        """Check the outputs and gradients of a contender."""

    def work(self, case: Case, part: str) -> Work:
        """Return the least work of a part."""


def case_name(group: str, op: str, shape: Mapping[str, int], dtype: str, mode: str) -> str:
    """Return the text that identifies a case, such as ``ops/linear/rows=64,cols=64,tokens=8/float32/joint``."""
    sizes = ",".join(f"{name}={size}" for name, size in shape.items())
    return f"{group}/{op}/{sizes}/{dtype}/{mode}"


def is_ours(contender: str) -> bool:
    """Return True for a contender of this package."""
    return contender.partition(",")[0] == "ours"


def is_eager(contender: str) -> bool:
    """Return True for the usual way in plain PyTorch, beside which others are judged."""
    return contender.partition(",")[0] == "eager"
