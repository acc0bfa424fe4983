"""What every masked layer shares: logits, the seed and draw counter, and when it samples."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from stochprune import functional, rng
from stochprune.functional._checks import check_estimator


class MaskedLayer(nn.Module):
    """Base of the masked layers: a ``weight`` with one keep logit for each entry.

    In the state_dict: ``weight`` and ``bias`` as in the dense layer, ``mask_logits``, and the counters ``mask_seed``
    and ``mask_draw``, so that a resumed run goes on with the next mask. A dense checkpoint loads too: what it lacks
    of the mask stays as it is.

    Attributes:
        sample: None (the default) samples masks in training mode and thresholds in evaluation mode; True always
            samples; False always thresholds.
        estimator, temperature: see :func:`stochprune.functional.masked_linear`; may be changed at any time.
        stream: the layer's address in the mask contract.
    """

    weight: Tensor
    bias: Tensor | None
    mask_logits: Tensor
    mask_seed: Tensor
    mask_draw: Tensor

    def _init_mask(
        self,
        weight: Tensor,
        logits: Tensor,
        *,
        estimator: str,
        temperature: float,
        seed: int,
        stream: int | None,
    ) -> None:
        check_estimator(type(self).__name__, estimator, temperature)
        self.weight, self.mask_logits = weight, logits
        self.estimator, self.temperature = estimator, temperature
        self.stream = rng.stream("weight") if stream is None else stream
        self.sample: bool | None = None
        rng.check_address(seed=seed, stream=self.stream)
        self.register_buffer("mask_seed", torch.tensor([rng.as_int64(seed)], device=weight.device))
        self.register_buffer("mask_draw", torch.zeros(1, dtype=torch.int64, device=weight.device))
        self._last_draw: Tensor | None = None
        self._checkpointed = 0

    @property
    def samples_now(self) -> bool:
        """Whether the next forward draws a mask."""
        return self.training if self.sample is None else self.sample

    def next_draw(self) -> Tensor:
        """The draw of this forward, int64 [1]; advances the counter.

        A forward inside a backward pass is activation checkpointing at work: it repeats the latest draw and advances
        nothing.

        Raises:
            RuntimeError: the counter ran out, or several checkpointed forwards await their backward, so that none of
                them can be told from the others.
        """
        if torch.compiler.is_compiling():
            draw = self.mask_draw.clone()
            self.mask_draw += 1
            return draw
        if torch._C._current_graph_task_id() != -1 and self._last_draw is not None:
            if self._checkpointed > 1:
                raise RuntimeError(
                    "activation checkpointing: this masked layer ran several times before one backward; run each "
                    "forward's backward first, or give draws to stochprune.functional"
                )
            self._checkpointed = 0
            return self._last_draw
        if self.mask_draw.device.type == "cpu" and int(self.mask_draw) >= rng.DRAW_LIMIT:
            raise RuntimeError("the draw counter ran past 2^32 - 1: give the layer another seed")
        self._last_draw = self.mask_draw.clone()
        self.mask_draw += 1
        # Non-reentrant checkpointing takes hold of a forward by hooks on the tensors it saves.
        self._checkpointed += torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        return self._last_draw

    def gate(self) -> Tensor:
        """The mask of the evaluation mode, of the weight's shape.

        bool: kept with probability one half or more. The estimator hard_concrete has a soft one, see
        :func:`stochprune.functional.hard_concrete_gate`.
        """
        if self.estimator == "hard_concrete":
            return functional.hard_concrete_gate(self.mask_logits.detach())
        return self.mask_logits >= 0

    def thresholded_weight(self) -> Tensor:
        """The weight of the evaluation mode, under :meth:`gate`; differentiable in weight."""
        return self.weight * self.gate().to(self.weight.dtype)

    def hardened_weight(self, mask: Tensor | None = None) -> Tensor:
        """The weight, exactly 0 where ``mask`` (bool, default: the gate) prunes; a soft gate scales what is kept."""
        gate, weight = self.gate(), self.weight.detach()
        if gate.is_floating_point():
            weight = weight * gate.to(weight.dtype)
        return torch.where(gate > 0 if mask is None else mask, weight, 0.0)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("mask_logits", "mask_seed", "mask_draw"):
            state_dict.setdefault(prefix + name, getattr(self, name).detach())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last_draw": None, "_checkpointed": 0}


def masked_layers(model: nn.Module) -> dict[str, MaskedLayer]:
    """The masked layers of a model by the qualified name of their weight, each shared layer once."""
    return {
        f"{name}.weight" if name else "weight": module
        for name, module in model.named_modules()
        if isinstance(module, MaskedLayer)
    }


@contextlib.contextmanager
def sampling(model: nn.Module, enabled: bool = True) -> Iterator[nn.Module]:
    """Inside the context all masked layers of the model draw masks (``enabled``) or threshold, whatever the mode."""
    layers = list(masked_layers(model).values())
    before = [layer.sample for layer in layers]
    for layer in layers:
        layer.sample = enabled
    try:
        yield model
    finally:
        for layer, sample in zip(layers, before, strict=True):
            layer.sample = sample
