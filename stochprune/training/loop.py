"""The one training loop: batches, an objective, an optimiser, a constraint, callbacks and checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import nn

from stochprune.data.batch_loss import LossFunction
from stochprune.runs.checkpoint import Checkpoint
from stochprune.training.constraint import Constraint
from stochprune.training.identity import length_of
from stochprune.training.options import LoopOptions
from stochprune.training.saving import Stateful, restore, save
from stochprune.training.state import State
from stochprune.training.step import Stepper

Loader = Iterable[Any]
"""Batches of a kind that :class:`stochprune.data.batch_loss.BatchLoss` takes."""


def fit(
    model: nn.Module,
    loader: Loader,
    *,
    epochs: int,
    optimizer: torch.optim.Optimizer,
    loss_fn: LossFunction,
    constraint: Constraint | None = None,
    checkpoint: Checkpoint | None = None,
    callbacks: Sequence[object] = (),
    options: LoopOptions | None = None,
) -> list[dict[str, float]]:
    """Minimise the mean of ``loss_fn(model(x), y)`` plus the constraint's penalty.

    Callbacks are objects with some of these methods:

    =============================  =================================================================================
    ``setup(state)``               before a checkpoint is restored
    ``on_start(state)``            before the first step of a fresh or resumed run
    ``on_update(state)``           after the optimiser's step, before the checkpoint is written; here a callback
                                   changes a state of its own
    ``on_step(state)``             after each step
    ``on_epoch(state)``            after each epoch; may add numbers to ``state.history[-1]``
    ``on_end(state)``              after the last checkpoint
    ``state_dict()``,              a state of its own, stored in the checkpoint
    ``load_state_dict(state)``
    =============================  =================================================================================

    Args:
        model: trained in place; the caller sets its train or eval mode.
        loader: batches, iterated again in each epoch. If it, or else its sampler, has ``set_epoch(epoch)``, this is
            called first; a resumed run sees the same batches if their order depends only on the epoch.
        checkpoint: the training resumes from it if it exists, and writes it every ``checkpoint.every`` steps and at the
            end.

    Returns:
        One entry per epoch: ``epoch`` (from 1), ``loss`` (mean over its batches) and the numbers of the constraint.

    Raises:
        ValueError: a loader without batches, labels that do not fit the outputs, or a loss that is not a scalar.
        TypeError: a batch of another kind.
        FloatingPointError: the loss is not finite. The parameters are those before that step.
        CheckpointError: see :func:`stochprune.training.saving.restore`.
    """
    options = options or LoopOptions()
    batches = length_of(loader)
    state = State(
        model=model,
        epochs=epochs,
        steps_per_epoch=None if batches is None else -(-batches // options.accumulate),
        optimizer=optimizer,
        batch_loss=options.batch_loss(loss_fn),
        constraint=constraint or Constraint(),
    )
    step = Stepper(state, options)
    _notify(callbacks, "setup", state)
    parts = _parts(step, callbacks)
    if checkpoint is not None:
        restore(state, parts, checkpoint, batches=batches, accumulate=options.accumulate)
    _notify(callbacks, "on_start", state)
    while state.epoch < epochs and not state.stop:
        set_epoch(loader, state.epoch)
        for group in _groups(loader, state.batch, options.accumulate):
            losses = step(group)
            state.loss = sum(losses) / len(losses)
            state.batch, state.step = state.batch + len(losses), state.step + 1
            state.loss_sum += sum(losses)
            _notify(callbacks, "on_update", state)
            if checkpoint is not None and state.step % checkpoint.every == 0:
                save(state, parts, checkpoint)
            _notify(callbacks, "on_step", state)
        if state.batch == 0:
            raise ValueError("train_loader has no batches; an iterator can be used only once, give a list or a loader")
        numbers = state.constraint.measure(state)
        state.history.append({"epoch": state.epoch + 1, "loss": state.loss_sum / state.batch, **numbers})
        state.epoch, state.batch, state.loss_sum = state.epoch + 1, 0, 0.0
        _notify(callbacks, "on_epoch", state)
    if checkpoint is not None:
        save(state, parts, checkpoint)
    _notify(callbacks, "on_end", state)
    return state.history


def set_epoch(loader: Loader, epoch: int) -> None:
    """Call ``set_epoch`` of a loader, or of the samplers of a ``DataLoader``, which has no such method itself."""
    samplers: list[Any] = [getattr(loader, name, None) for name in ("sampler", "batch_sampler")]
    for each in [loader] if hasattr(loader, "set_epoch") else samplers:
        if hasattr(each, "set_epoch"):
            each.set_epoch(epoch)


def _groups(loader: Loader, start: int, size: int) -> Iterator[list[tuple[int, Any]]]:
    """Yield lists of ``size`` numbered batches, the last one maybe shorter, from batch number ``start`` on."""
    batches = islice(enumerate(loader), start, None)
    while group := list(islice(batches, size)):
        yield group


def _parts(step: Stepper, callbacks: Sequence[object]) -> dict[str, Stateful]:
    """Return everything that has a state in the checkpoint besides the model and the optimiser, by name."""
    parts: dict[str, Stateful] = {} if step.schedule is None else {"schedule": step.schedule}
    if step.scaler.is_enabled():
        parts["scaler"] = step.scaler
    for callback in callbacks:
        if hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict"):
            name = type(callback).__name__
            parts[name if name not in parts else f"{name} {len(parts)}"] = callback
    return parts


def _notify(callbacks: Sequence[object], event: str, state: State) -> None:
    for callback in callbacks:
        method = getattr(callback, event, None)
        if method is not None:
            method(state)
