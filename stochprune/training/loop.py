"""The one training loop: batches, an objective, an optimiser, a constraint, callbacks and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stochprune.data.pairs import pairs
from stochprune.runs.checkpoint import Checkpoint
from stochprune.runs.files import CheckpointError, Kinds, require
from stochprune.training.labels import check_labels, trained_loss

Loader = Iterable[tuple[Tensor, Tensor]]
LossFunction = Callable[[Tensor, Tensor], Tensor]


class Constraint:
    """A constraint on every step of a training. This base class does nothing."""

    def penalty(self) -> Tensor | float:
        """Return a term to add to the loss."""
        return 0.0

    def before_step(self) -> None:
        """Change the gradients before the optimiser's step."""

    def after_step(self) -> None:
        """Change the parameters after the optimiser's step."""


@dataclass
class State:
    """The state of a training that callbacks see. ``batch`` and ``loss_sum`` count from the start of the epoch.

    A callback that sets ``stop`` at the end of an epoch ends the training.
    """

    model: nn.Module
    epochs: int
    steps_per_epoch: int | None
    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss: float = math.nan
    loss_sum: float = 0.0
    stop: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    constraint: Constraint = field(default_factory=Constraint)

    POSITION: ClassVar[Kinds] = {
        "epoch": int,
        "batch": int,
        "step": int,
        "loss": float,
        "loss_sum": float,
        "stop": bool,
        "history": list,
        "steps_per_epoch": int | None,
    }


def fit(
    model: nn.Module,
    loader: Loader,
    *,
    epochs: int,
    optimizer: torch.optim.Optimizer,
    loss_fn: LossFunction,
    constraint: Constraint | None = None,
    measure: Callable[[], dict[str, float]] = dict,
    checkpoint: Checkpoint | None = None,
    callbacks: Sequence[object] = (),
) -> list[dict[str, float]]:
    """Minimise the mean of ``loss_fn(model(x), y)`` plus the constraint's penalty.

    Args:
        model: trained in place; the caller sets its train or eval mode.
        loader: batches (x, y), iterated again in each epoch. If it has ``set_epoch(epoch)``, this is called first; a
            resumed run sees the same batches if their order depends only on the epoch.
        measure: returns further numbers for the history at the end of an epoch.
        checkpoint: the training resumes from it if it exists, and writes it every ``checkpoint.every`` steps and at the
            end.
        callbacks: objects with the optional methods ``on_start(state)``, before the first step of a fresh or resumed
            run, ``on_step(state)`` and ``on_epoch(state)``.

    Returns:
        One entry per epoch: ``epoch`` (from 1), ``loss`` (mean over its batches) and the numbers of ``measure``.

    Raises:
        ValueError: a loader without batches, labels that do not fit the outputs, or a loss that is not a scalar.
        TypeError: a batch that is not a pair of tensors.
        FloatingPointError: the loss is not finite. The parameters are those before that step.
        CheckpointError: see :meth:`Checkpoint.load`.
    """
    constraint = constraint or Constraint()
    device = next(model.parameters()).device
    state = State(model, epochs, len(loader) if isinstance(loader, Sized) else None, constraint=constraint)
    if checkpoint is not None:
        _restore(state, optimizer, checkpoint)
    _notify(callbacks, "on_start", state)
    while state.epoch < epochs and not state.stop:
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(state.epoch)
        for x, y in islice(pairs(loader, "train_loader"), state.batch, None):
            optimizer.zero_grad()
            outputs = model(x.to(device))
            check_labels(loss_fn, outputs, y)
            loss = trained_loss(loss_fn(outputs, y.to(device))) + constraint.penalty()
            state.loss = loss.item()
            if not math.isfinite(state.loss):
                raise FloatingPointError(
                    f"the loss is {state.loss} in epoch {state.epoch + 1} at step {state.step + 1}: "
                    "look for bad values in the data, or lower the learning rates"
                )
            loss.backward()
            constraint.before_step()
            optimizer.step()
            constraint.after_step()
            state.batch, state.step, state.loss_sum = state.batch + 1, state.step + 1, state.loss_sum + state.loss
            if checkpoint is not None and state.step % checkpoint.every == 0:
                _save(state, optimizer, checkpoint)
            _notify(callbacks, "on_step", state)
        if state.batch == 0:
            raise ValueError("train_loader has no batches; an iterator can be used only once, give a list or a loader")
        state.history.append({"epoch": state.epoch + 1, "loss": state.loss_sum / state.batch, **measure()})
        state.epoch, state.batch, state.loss_sum = state.epoch + 1, 0, 0.0
        _notify(callbacks, "on_epoch", state)
    if checkpoint is not None:
        _save(state, optimizer, checkpoint)
    return state.history


def _notify(callbacks: Sequence[object], event: str, state: State) -> None:
    for callback in callbacks:
        method = getattr(callback, event, None)
        if method is not None:
            method(state)


def _save(state: State, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    position: dict[str, Any] = {name: getattr(state, name) for name in State.POSITION}
    checkpoint.save({"model": state.model.state_dict(), "optimizer": optimizer.state_dict(), "position": position})


def _restore(state: State, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    payload = checkpoint.load()
    if payload is None:
        return
    path = checkpoint.path
    require(payload, {"model": dict, "optimizer": dict, "position": dict}, path)
    position = require(payload["position"], State.POSITION, path)
    _check_position(position, state, path)
    settings = [_settings(group) for group in optimizer.param_groups]
    try:
        state.model.load_state_dict(payload["model"])
        optimizer.load_state_dict(payload["optimizer"])
        _check_optimizer(settings, optimizer)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} does not fit the model or its optimizer: {error}") from error
    for name in State.POSITION:
        setattr(state, name, position[name])


def _settings(group: dict[str, Any]) -> dict[str, type]:
    """Return names and types of an optimizer's settings of a group; an integer learning rate 1 becomes 1.0."""
    return {name: float if type(value) is int else type(value) for name, value in group.items()}


def _check_optimizer(settings: list[dict[str, type]], optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError if the loaded optimizer has other settings or a state of another shape."""
    for expected, group in zip(settings, optimizer.param_groups, strict=True):
        if _settings(group) != expected:
            raise ValueError("its settings have other names or types")
        found = [(tensor, optimizer.state[tensor]) for tensor in group["params"] if tensor in optimizer.state]
        for tensor, values in found:
            if values.keys() != found[0][1].keys():
                raise ValueError("the states of two parameters differ in their keys")
            for name, value in values.items():
                if isinstance(value, torch.Tensor) and value.ndim and value.shape != tensor.shape:
                    raise ValueError(f"{name} is {tuple(value.shape)} for a parameter {tuple(tensor.shape)}")


def _check_position(position: dict[str, Any], state: State, path: Path) -> None:
    epoch, batch, step, length = (position[name] for name in ("epoch", "batch", "step", "steps_per_epoch"))
    if state.steps_per_epoch != length:
        raise CheckpointError(
            f"{path} was written with {length} batches an epoch, but the loader has {state.steps_per_epoch}: "
            "give the same examples and batch size, or choose another folder"
        )
    epochs = [entry.get("epoch") if isinstance(entry, dict) else None for entry in position["history"]]
    if not (
        0 <= epoch <= state.epochs
        and 0 <= batch <= (step if length is None else length)
        and epoch + batch <= step
        and (length is None or step <= epoch * length + batch)
        and (epoch > 0 or step == batch)
        and epochs == list(range(1, epoch + 1))
        and (step == 0 or math.isfinite(position["loss"]))
        and math.isfinite(position["loss_sum"])
    ):
        raise CheckpointError(
            f"{path} has an impossible position: epoch {epoch}, batch {batch}, step {step}, "
            f"loss {position['loss']} and a history of {len(epochs)} epochs"
        )
