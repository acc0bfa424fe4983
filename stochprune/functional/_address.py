"""The address of a call's masks as the user gives it: it is checked once, here, and becomes a Mask."""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
from torch import Tensor

from stochprune import rng
from stochprune.address import Mask
from stochprune.functional._checks import is_number

ESTIMATORS = ("straight_through", "concrete", "straight_through_concrete", "expected", "hard_concrete")


def check_estimator(op: str, estimator: str, temperature: float) -> None:
    """Raise unless the estimator is known and the temperature is a positive number."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"{op}: unknown estimator {estimator!r}; known are: {', '.join(ESTIMATORS)}")
    if not is_number(temperature):
        raise TypeError(f"{op}: temperature must be a number, got {temperature!r}")
    if not 0 < temperature <= sys.float_info.max:  # an int may exceed the largest float
        raise ValueError(f"{op}: temperature must be a positive number, got {temperature}")


class Address(NamedTuple):
    """The arguments of the public functions that determine the masks, not yet checked."""

    seed: int | Tensor
    draw: int | Tensor
    stream: int
    estimator: str = "straight_through"
    temperature: float = 1.0
    samples: int | None = None
    row_offset: int = 0
    col_offset: int = 0

    def mask(self, op: str, device: torch.device, rows: int, cols: int) -> Mask:
        """Check the arguments and return the masks on ``device``: of one draw, ``samples`` draws or a vector of draws.

        Args:
            op: the public function that error messages name.
            rows, cols: the size of the weight as a matrix.

        Raises:
            TypeError, ValueError: see :func:`stochprune.rng.check_address`; an unknown estimator, a temperature that is
                not positive.
        """
        seed, draw = self.seed, self.draw
        if (  # a fast test that accepts valid arguments of a layer; it runs in every call
            type(seed) is Tensor
            and type(draw) is Tensor
            and not torch.compiler.is_compiling()
            and seed.dtype is draw.dtype is torch.int64
            and seed.shape == draw.shape == (1,)
            and seed.device == draw.device == device
            and self[5:] == (None, 0, 0)
            and (rows <= rng.ROW_LIMIT and cols <= rng.COLUMN_LIMIT)
            and (type(self.stream) is int and 0 <= self.stream < rng.STREAM_LIMIT)
            and self.estimator in ESTIMATORS
            and (type(self.temperature) is float and 0 < self.temperature <= sys.float_info.max)
            and torch._C._functorch.peek_interpreter_stack() is None
            and (not draw.is_cpu or 0 <= draw.item() < rng.DRAW_LIMIT)
        ):
            return Mask(seed, draw, self.stream, self.estimator, self.temperature)
        check_estimator(op, self.estimator, self.temperature)
        offsets = {"row_offset": self.row_offset, "col_offset": self.col_offset}
        size = {"rows": rows, "cols": cols}
        stream = self.stream
        rng.check_address(op, seed=self.seed, draw=self.draw, samples=self.samples, stream=stream, **size, **offsets)
        for name, value in (("seed", self.seed), ("draw", self.draw)):
            if isinstance(value, Tensor) and value.device != device:
                raise ValueError(f"{op}: {name} is on {value.device}, the other tensors are on {device}; move it there")
        options = (self.estimator, float(self.temperature), int(self.row_offset), int(self.col_offset))
        return Mask(self._seeds(device), self._draws(device), int(stream), *options)

    def first(self) -> Address:
        """Return the address of the first draw, without offsets."""
        return self._replace(samples=None, row_offset=0, col_offset=0)

    def _seeds(self, device: torch.device) -> Tensor:
        seed = self.seed
        return seed.reshape(1) if isinstance(seed, Tensor) else torch.tensor([rng.as_int64(seed)], device=device)

    def _draws(self, device: torch.device) -> Tensor:
        draw, count = self.draw, 1 if self.samples is None else int(self.samples)
        if not isinstance(draw, Tensor):
            return torch.arange(int(draw), int(draw) + count, device=device)
        return draw.reshape(-1) if self.samples is None else draw.reshape(1) + torch.arange(count, device=device)

    def one_draw(self, op: str, device: torch.device, rows: int, cols: int) -> Mask:
        """Return the mask of one draw; raise ValueError if there are several draws."""
        mask = self.mask(op, device, rows, cols)
        if len(mask.draw) != 1:
            raise ValueError(f"{op}: draw must be one draw, got {len(mask.draw)} draws; call the function for each")
        return mask
