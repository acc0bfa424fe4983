"""MaskSource: which masks a layer's forwards run under: its draws in order, many at once, or a weight that is given."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from stochprune import rng
from stochprune.nn import repetition

# What a layer holds for the moment: a copy of it starts without.
MOMENTARY = ("weight_override", "draw_override", "draws_per_forward", "_last_draw", "_awaiting", "_repeated_in")


class MaskSource(nn.Module):
    """The part of a masked layer that addresses its masks and counts its draws.

    Attributes:
        sample: None (the default) samples masks in training mode and thresholds in evaluation mode; True always
            samples; False always thresholds.
        estimator, temperature: may be changed at any time.
        stream: the layer's address in the mask contract.
        weight_override: None, or the masked weight that forwards use instead of drawing, see :func:`override_weights`.
        draw_override: None, or the draw of its mask.
        draws_per_forward: how many masks a forward draws, more than 1 inside ``batched_samples``.
    """

    estimator: str
    temperature: float
    stream: int
    mask_seed: Tensor
    mask_draw: Tensor
    sample: bool | None = None
    weight_override: Tensor | None = None
    draw_override: Tensor | None = None
    draws_per_forward: int = 1
    _last_draw: Tensor | None = None
    _awaiting: repetition.Awaiting | None = None
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
            "seed": self._buffers["mask_seed"],
            "draw": self.next_draw() if draw is None else draw,
            "stream": self.stream,
            "estimator": self.estimator,
            "temperature": self.temperature,
        }

    @property
    def samples_now(self) -> bool:
        """True if the next forward draws a mask, unless its weight is overridden."""
        return self.training if self.sample is None else self.sample

    def next_draw(self) -> Tensor:
        """The draw of this forward, int64 [1], or its draws [D] inside ``batched_samples``; advances the counter.

        A forward inside a backward pass is activation checkpointing at work: it repeats the draw of the forward that it
        stands for and advances nothing. Under ``torch.func`` the counter advances too, outside of the transforms: once
        in each call of the function that is transformed, so that the examples of a vmap share their mask.

        Raises:
            RuntimeError: the counter ran out, or several checkpointed forwards await their backward, so that none of
                them can be told from the others.
        """
        if torch.compiler.is_compiling():
            # No clone and addition in place: inductor makes these one buffer, and backward draws the next mask.
            following = self.mask_draw + self.draws_per_forward
            self.mask_draw.copy_(following)
            return self._draws(following - self.draws_per_forward)
        held = self.__dict__  # nn.Module sets attributes slowly
        backward = torch._C._current_graph_task_id()
        if backward != -1 and self._last_draw is not None:
            return self._repeated(self._last_draw, backward)
        counter = held["_buffers"]["mask_draw"]
        draw = _count(counter, self.draws_per_forward)
        if self.draws_per_forward > 1:
            draw = self._draws(draw)
        held["_last_draw"] = draw
        owners = repetition.owners()
        if owners:
            held.setdefault("_awaiting", repetition.Awaiting()).add(draw, owners)
        return draw

    def _repeated(self, latest: Tensor, backward: int) -> Tensor:
        """The draw of the forward that is repeated in ``backward``; where nothing tells which it is, the latest."""
        draw = self._awaiting.find() if self._awaiting is not None else None
        if draw is None and backward == self._repeated_in:
            raise RuntimeError(repetition.SEVERAL)
        self._repeated_in = backward
        return latest if draw is None else draw

    def _draws(self, first: Tensor) -> Tensor:
        if self.draws_per_forward == 1:
            return first
        return first + torch.arange(self.draws_per_forward, device=first.device)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in MOMENTARY}


def _count(counter: Tensor, draws: int) -> Tensor:
    """Advance a counter [1]; return what it held."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        if not torch._C._functorch.is_functorch_wrapped_tensor(counter):
            # torch.func refuses to change what is not an argument of the function; a counter is meant to change.
            with temporarily_clear_interpreter_stack():
                return _count(counter, draws)
    elif counter.is_cpu and counter.item() + draws > rng.DRAW_LIMIT:
        raise RuntimeError("the draw counter ran past 2^32 - 1: give the layer another seed")
    draw = counter.clone()
    counter.add_(draws)
    return draw


@contextlib.contextmanager
def override_weights(
    weights: Mapping[MaskSource, Tensor], draws: Mapping[MaskSource, Tensor] | None = None
) -> Iterator[None]:
    """Inside the context each layer runs with the masked weight given here, and draws nothing.

    A weight of another dtype than the layer's is for autocast; where that is off, the layer masks its own by ``draws``.
    """
    before = {layer: (layer.weight_override, layer.draw_override) for layer in weights}
    for layer, weight in weights.items():
        layer.weight_override, layer.draw_override = weight, (draws or {}).get(layer)
    try:
        yield
    finally:
        for layer, earlier in before.items():
            layer.weight_override, layer.draw_override = earlier
