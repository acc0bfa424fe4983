"""MaskSource: which masks a layer's forwards run under: its draws in order, many at once, or a weight that is given."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stochprune import rng
from stochprune.nn.repetition import SEVERAL, Awaiting

# What a layer holds for the moment: a copy of it starts without.
MOMENTARY = ("given_weight", "given_draw", "draws_a_forward", "_last_draw", "_awaiting", "_repeated_in")


class MaskSource(nn.Module):
    """The part of a masked layer that addresses its masks and counts its draws.

    Attributes:
        sample: None (the default) samples masks in training mode and thresholds in evaluation mode; True always
            samples; False always thresholds.
        estimator, temperature: may be changed at any time.
        stream: the layer's address in the mask contract.
        given_weight: None, or the masked weight that forwards use instead of drawing, see :func:`given_weights`.
        given_draw: None, or the draw of its mask.
        draws_a_forward: how many masks a forward draws, more than 1 inside ``many_draws``.
    """

    estimator: str
    temperature: float
    stream: int
    mask_seed: Tensor
    mask_draw: Tensor
    sample: bool | None = None
    given_weight: Tensor | None = None
    given_draw: Tensor | None = None
    draws_a_forward: int = 1
    _last_draw: Tensor | None = None
    _awaiting: Awaiting | None = None
    _repeated_in: int = -1  # autograd's number of the backward that repeated a forward

    def _start_source(
        self, *, seed: int, stream: int, estimator: str, temperature: float, device: torch.device
    ) -> None:
        rng.check_address(type(self).__name__, seed=seed, stream=stream)
        self.estimator, self.temperature, self.stream, self.sample = estimator, temperature, stream, None
        self.register_buffer("mask_seed", torch.tensor([rng.as_int64(seed)], device=device))
        self.register_buffer("mask_draw", torch.zeros(1, dtype=torch.int64, device=device))

    def address(self, draw: Tensor | None = None) -> dict[str, Any]:
        """Return the address for the ops of this forward; without ``draw`` the counter advances."""
        return {
            "seed": self.mask_seed,
            "draw": (self.next_draw() if draw is None else draw).squeeze(0),
            "stream": self.stream,
            "estimator": self.estimator,
            "temperature": self.temperature,
        }

    @property
    def samples_now(self) -> bool:
        """True if the next forward draws a mask, unless it is given a weight."""
        return self.training if self.sample is None else self.sample

    def next_draw(self) -> Tensor:
        """The draw of this forward, int64 [1], or its draws [D] inside ``many_draws``; advances the counter.

        A forward inside a backward pass is activation checkpointing at work: it repeats the draw of the forward that it
        stands for and advances nothing.

        Raises:
            RuntimeError: the counter ran out, or several checkpointed forwards await their backward, so that none of
                them can be told from the others.
        """
        if torch.compiler.is_compiling():
            # No clone and addition in place: inductor makes these one buffer, and backward draws the next mask.
            following = self.mask_draw + self.draws_a_forward
            self.mask_draw.copy_(following)
            return self._draws(following - self.draws_a_forward)
        backward = torch._C._current_graph_task_id()
        if backward != -1 and self._last_draw is not None:
            return self._repeated(self._last_draw, backward)
        if self.mask_draw.device.type == "cpu" and int(self.mask_draw) + self.draws_a_forward > rng.DRAW_LIMIT:
            raise RuntimeError("the draw counter ran past 2^32 - 1: give the layer another seed")
        self._last_draw = self._draws(self.mask_draw.clone())
        self.mask_draw += self.draws_a_forward
        self._awaiting = self._awaiting or Awaiting()
        self._awaiting.add(self._last_draw)
        return self._last_draw

    def _repeated(self, latest: Tensor, backward: int) -> Tensor:
        """The draw of the forward that is repeated in ``backward``; where nothing tells which it is, the latest."""
        draw = self._awaiting.find() if self._awaiting is not None else None
        if draw is None and backward == self._repeated_in:
            raise RuntimeError(SEVERAL)
        self._repeated_in = backward
        return latest if draw is None else draw

    def _draws(self, first: Tensor) -> Tensor:
        if self.draws_a_forward == 1:
            return first
        return first + torch.arange(self.draws_a_forward, device=first.device)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in MOMENTARY}


@contextlib.contextmanager
def given_weights(
    weights: Mapping[MaskSource, Tensor], draws: Mapping[MaskSource, Tensor] | None = None
) -> Iterator[None]:
    """Inside the context each layer runs with the masked weight given here, and draws nothing.

    A weight of another dtype than the layer's is for autocast; where that is off, the layer masks its own by ``draws``.
    """
    before = {layer: (layer.given_weight, layer.given_draw) for layer in weights}
    for layer, weight in weights.items():
        layer.given_weight, layer.given_draw = weight, (draws or {}).get(layer)
    try:
        yield
    finally:
        for layer, earlier in before.items():
            layer.given_weight, layer.given_draw = earlier
