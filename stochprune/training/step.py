"""Stepper: one step of the optimiser, over one batch or several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from stochprune.data.batch_loss import tensors_of
from stochprune.data.labels import trained_loss
from stochprune.runs import ranks
from stochprune.training.data_parallel import add_up, share
from stochprune.training.in_backward import check_in_backward
from stochprune.training.options import LoopOptions, not_finite
from stochprune.training.state import State


class Stepper:
    """Makes the steps of a training. Of several ranks each takes its share of the batches and makes the same step.

    Attributes:
        schedule: of the learning rates, None if there is none.
        scaler: of the loss; does nothing unless the precision is fp16.

    Raises:
        ValueError: the optimiser steps inside backward, which the options make impossible.
    """

    def __init__(self, state: State, options: LoopOptions) -> None:
        self.state, self.clip_norm = state, options.clip_norm
        check_in_backward(
            "LoopOptions",
            state.optimizer,
            accumulate=options.accumulate,
            clip_norm=options.clip_norm,
            fp16=options.precision == "fp16",
        )
        steps = None if state.steps_per_epoch is None else state.epochs * state.steps_per_epoch
        self.schedule = options.make_schedule(state.optimizer, steps)
        device = next(state.model.parameters()).device.type
        self.scaler = torch.amp.GradScaler(device, enabled=options.precision == "fp16")

    def __call__(self, batches: Sequence[tuple[int, Any]]) -> list[float]:
        """Make one step along the mean gradient of numbered batches; return their losses.

        Raises:
            FloatingPointError: a loss is not finite, or the norm of a gradient that is clipped. The parameters are
                those before the step.
        """
        optimizer, constraint = self.state.optimizer, self.state.constraint
        optimizer.zero_grad()
        shares = [share(batch) for _, batch in batches]
        own = [self._backward(number, *part, len(batches)) for (number, _), part in zip(batches, shares, strict=True)]
        losses = add_up(self.state.model, own)
        for value, mine, (part, _) in zip(losses, own, shares, strict=True):
            self._require_finite(value, mine, part)
        self.scaler.unscale_(optimizer)
        constraint.before_step()
        if self.clip_norm is not None:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm))
            if not math.isfinite(norm) and not self.scaler.is_enabled():  # the scaler skips such steps
                raise FloatingPointError(
                    f"the norm of the gradient is {norm} in epoch {self.state.epoch + 1} at step "
                    f"{self.state.step + 1}: lower the learning rates"
                )
        scale = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        if self.schedule is not None and self.scaler.get_scale() >= scale:  # else the step was skipped
            self.schedule.step()
        constraint.after_step()
        return losses

    def _backward(self, number: int, batch: Any, fraction: float, batches: int) -> float:
        """Add the gradient of a fraction of a batch, one of ``batches``; return what it adds to the loss."""
        state = self.state
        found = state.batch_loss(state.model, batch, number)
        loss = trained_loss(found.loss) + state.constraint.penalty()
        value = loss.item() * fraction
        if ranks.count() == 1:  # an optimiser may step inside backward; several ranks look when all have their losses
            self._require_finite(value, value, batch)
        self.scaler.scale(loss / (batches / fraction)).backward()
        return value

    def _require_finite(self, value: float, own: float, batch: Any) -> None:
        """Raise ``FloatingPointError`` on all ranks if a loss, to which this rank added ``own``, is not finite."""
        if not math.isfinite(value):
            reason = math.isfinite(own), not_finite(self.state.model, tensors_of(batch))
            raise FloatingPointError(
                f"the loss is {value} in epoch {self.state.epoch + 1} at step {self.state.step + 1}: "
                f"{min(ranks.from_all(reason))[1]}"
            )
