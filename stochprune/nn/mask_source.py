"""MaskSource: the masks of a layer's forward passes: successive draws, several at once, or a weight that is given."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from stochprune import rng
from stochprune.nn import repetition
from stochprune.quantised import dequantised, is_quantised

# Temporary state of a layer: a copy or a pickle of the layer does not contain it.
MOMENTARY = (
    *("weight_override", "draw_override", "draws_per_forward", "_last_draw", "_awaiting", "_repeated_in"),
    *("mask_ranks", "mask_rank"),  # another process, or another number of them, may load the copy
)


class MaskSource(nn.Module):
    """The part of a masked layer that determines the addresses of its masks and counts its draws.

    Attributes:
        sample: None (the default) samples masks in training mode and thresholds in evaluation mode; True always
            samples; False always thresholds.
        estimator, temperature: may be changed at any time.
        stream: the layer's number in the mask contract.
        weight_override: None, or a masked weight that forward passes use instead of sampling a mask, see
            :func:`override_weights`.
        draw_override: None, or the draw of that weight's mask.
        draws_per_forward: the number of masks of a forward pass, more than 1 inside ``batched_samples``.
        mask_ranks: the number of processes of which each takes masks of its own, see
            :func:`stochprune.distributed.own_masks`; 1 if all share them.
        mask_rank: the number of this process among those that split a batch; None if nothing has set it.
        own_state: the keys of the state_dict that a dense layer lacks. A dense checkpoint loads and does not change
            these tensors; it is refused if they have no values yet.
    """

    own_state: ClassVar[tuple[str, ...]] = ("mask_seed", "mask_draw")

    estimator: str
    temperature: float
    stream: int
    weight: Tensor
    mask_seed: Tensor
    mask_draw: Tensor
    sample: bool | None = None
    weight_override: Tensor | None = None
    draw_override: Tensor | None = None
    draws_per_forward: int = 1
    mask_ranks: int = 1
    mask_rank: int | None = None
    _last_draw: Tensor | None = None
    _awaiting: repetition.Awaiting | None = None
    _blank: bool = False  # True on the meta device, and until a checkpoint with the layer's own state is loaded
    _repeated_in: int = -1  # autograd's number of the last backward pass that repeated a forward pass

    def _start_source(
        self, *, seed: int, stream: int, estimator: str, temperature: float, device: torch.device
    ) -> None:
        rng.check_address(type(self).__name__, seed=seed, stream=stream)
        self.estimator, self.temperature, self.stream, self.sample = estimator, temperature, stream, None
        self.register_buffer("mask_seed", torch.tensor([rng.as_int64(seed)], device=device))
        self.register_buffer("mask_draw", torch.zeros(1, dtype=torch.int64, device=device))

    def address(self, draw: Tensor | None = None) -> dict[str, Any]:
        """Return the address for this forward pass, as the ops take it; without ``draw``, advance the counter."""
        return {
            "seed": self._buffers["mask_seed"],
            "draw": self.next_draw() if draw is None else draw,
            "stream": self.stream,
            "estimator": self.estimator,
            "temperature": self.temperature,
        }

    @property
    def samples_now(self) -> bool:
        """True if the next forward pass samples a mask; an overridden weight has priority."""
        return self.training if self.sample is None else self.sample

    def next_draw(self) -> Tensor:
        """Advance the counter; return the draw of this forward pass, int64 [1], or [D] inside ``batched_samples``.

        A forward pass inside a backward pass is a repetition by activation checkpointing. It uses the draw of the
        forward pass that it repeats, and the counter does not advance. Under ``torch.func`` the counter advances once
        in each call of the transformed function, so that the examples of a vmap share their mask.

        Raises:
            RuntimeError: the counter ran out; or several checkpointed forward passes await their backward pass, and
                nothing distinguishes them.
        """
        if torch.compiler.is_compiling():
            # Not a clone and an addition in place: inductor merges their buffers, and backward uses the next mask.
            advance = self.draws_per_forward * (self.mask_ranks if self.training else 1)
            following = self.mask_draw + advance
            self.mask_draw.copy_(following)
            return self._draws(following - advance)
        held = self.__dict__  # nn.Module sets attributes slowly
        backward = torch._C._current_graph_task_id()
        if backward != -1 and self._last_draw is not None:
            return self._repeated(self._last_draw, backward)
        counter = held["_buffers"]["mask_draw"]
        draw = _count(counter, self.draws_per_forward * (self.mask_ranks if self.training else 1))
        if self.draws_per_forward > 1 or self.mask_ranks > 1:
            draw = self._draws(draw)
        held["_last_draw"] = draw
        owners = repetition.owners()
        if owners:
            held.setdefault("_awaiting", repetition.Awaiting()).add(draw, owners)
        return draw

    def _repeated(self, latest: Tensor, backward: int) -> Tensor:
        """Return the draw of the forward pass that ``backward`` repeats; if it is not known, the latest draw."""
        draw = self._awaiting.find() if self._awaiting is not None else None
        if draw is None and backward == self._repeated_in:
            raise RuntimeError(repetition.SEVERAL)
        self._repeated_in = backward
        return latest if draw is None else draw

    def _draws(self, first: Tensor) -> Tensor:
        """Return the draws of this forward pass; ``first`` is the first of those of all processes."""
        if self.mask_ranks > 1 and self.mask_rank and self.training:
            first = first + self.mask_rank * self.draws_per_forward
        if self.draws_per_forward == 1:
            return first
        return first + torch.arange(self.draws_per_forward, device=first.device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self._blank:  # the layer has no values to keep, so torch reports the keys that the checkpoint lacks
            self._blank = any(prefix + name not in state_dict for name in self.own_state)
        else:
            for name in self.own_state:
                state_dict.setdefault(prefix + name, getattr(self, name).detach())
        quantised = prefix + "weight" in state_dict and is_quantised(getattr(self, "weight", None))
        if quantised:
            self._check_numbers(state_dict.pop(prefix + "weight"), prefix + "weight")
        super()._load_from_state_dict(state_dict, prefix, *args)
        if quantised and (prefix + "weight") in (missing := args[2]):
            missing.remove(prefix + "weight")

    def _check_numbers(self, given: Tensor, name: str) -> None:
        """Raise ``ValueError`` unless these are the numbers of the quantised weight, which stays as it is."""
        numbers = dequantised(self.weight)
        given = dequantised(given).to(numbers)
        if given.shape != numbers.shape or not torch.equal(given, numbers):
            raise ValueError(
                f"load_state_dict: {name} is quantised and the checkpoint has other numbers: load the weights before "
                "they are quantised"
            )

    def mark_loaded(self) -> None:
        """Declare that the layer's own state has values, after a loader set it without ``load_state_dict``."""
        self._blank = False

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._blank = self._blank or self.mask_seed.is_meta  # to_empty() allocates memory without values
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in MOMENTARY}


def _count(counter: Tensor, draws: int) -> Tensor:
    """Advance a counter [1]; return its value from before."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        if not torch._C._functorch.is_functorch_wrapped_tensor(counter):
            # torch.func forbids changes of tensors that are not arguments of the function, but the counter must change.
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
    """Make each layer use the masked weight given here inside the context; it samples no mask.

    A weight whose dtype differs from the layer's is for autocast. If autocast is off, the layer masks its own weight
    with the draw in ``draws``.
    """
    before = {layer: (layer.weight_override, layer.draw_override) for layer in weights}
    for layer, weight in weights.items():
        layer.weight_override, layer.draw_override = weight, (draws or {}).get(layer)
    try:
        yield
    finally:
        for layer, earlier in before.items():
            layer.weight_override, layer.draw_override = earlier
