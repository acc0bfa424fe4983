"""Save a training and restore it: the model, the optimiser, the position, and whatever else has a state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from stochprune.runs.checkpoint import Checkpoint
from stochprune.runs.files import CheckpointError, require
from stochprune.runs.results import record_of
from stochprune.training.adamw import MaskedAdamW
from stochprune.training.state import Position, State


class Stateful(Protocol):
    """An object with a state of its own in a checkpoint: a scheduler, a scaler or a callback."""

    def state_dict(self) -> dict[str, Any]:
        """Return numbers, texts, tensors, and lists and mappings of them."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Continue from what :meth:`state_dict` returned."""


def save(state: State, parts: Mapping[str, Stateful], checkpoint: Checkpoint) -> None:
    """Write the checkpoint of a training; ``parts`` by name have states besides."""
    position = {field.name: getattr(state, field.name) for field in dataclasses.fields(Position)}
    payload = {"model": state.model.state_dict(), "optimizer": state.optimizer.state_dict(), "position": position}
    if parts:
        payload["parts"] = {name: part.state_dict() for name, part in parts.items()}
    checkpoint.save(payload)


def restore(
    state: State, parts: Mapping[str, Stateful], checkpoint: Checkpoint, *, batches: int | None, accumulate: int
) -> None:
    """Continue from the checkpoint of a training, if there is one.

    Args:
        batches: in an epoch, None if unknown.
        accumulate: batches in a step.

    Raises:
        CheckpointError: it is damaged, of another run, or does not fit the model, the optimiser or the parts.
    """
    payload = checkpoint.load()
    if payload is None:
        return
    path = checkpoint.path
    require(payload, {"model": dict, "optimizer": dict, "position": dict}, path)
    position = record_of(Position, payload["position"], path)
    if state.steps_per_epoch != position.steps_per_epoch:
        raise CheckpointError(
            f"{path} was written with {position.steps_per_epoch} steps an epoch, but the loader gives "
            f"{state.steps_per_epoch}: give the same examples and batch size, or choose another folder"
        )
    position.check(path, epochs=state.epochs, batches=batches, accumulate=accumulate)
    stored = require(payload.get("parts", {}), {name: dict for name in parts}, path)
    if left := stored.keys() - parts.keys():
        raise CheckpointError(
            f"{path} was written with {', '.join(map(str, left))}, which this call lacks: give the same options and "
            "callbacks, or choose another folder"
        )
    settings = [_settings(group) for group in state.optimizer.param_groups]
    try:
        state.model.load_state_dict(payload["model"])
        for old, group in zip(payload["optimizer"]["param_groups"], state.optimizer.param_groups, strict=False):
            if "name" in group:  # checkpoints of version 0.1 lack the names
                old.setdefault("name", group["name"])
        state.optimizer.load_state_dict(payload["optimizer"])
        _check_optimizer(settings, state.optimizer)
        for name, part in parts.items():
            part.load_state_dict(stored[name])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} does not fit the model or its optimizer: {error}") from error
    for field in dataclasses.fields(Position):
        setattr(state, field.name, getattr(position, field.name))


def _settings(group: dict[str, Any]) -> dict[str, type]:
    """Return names and types of an optimizer's settings of a group; an integer learning rate 1 becomes 1.0."""
    return {name: float if type(value) is int else type(value) for name, value in group.items()}


ELEMENTWISE = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, MaskedAdamW)
"""Optimisers whose state has one number for each weight. That of others may have sums of rows and columns (Adafactor)
or scales of blocks (moments of eight bits), and another form for each parameter."""


def _check_optimizer(settings: list[dict[str, type]], optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError if the loaded optimizer has other settings, or an elementwise one a state of another shape."""
    for expected, group in zip(settings, optimizer.param_groups, strict=True):
        if _settings(group) != expected:
            raise ValueError("its settings have other names or types")
        if type(optimizer) not in ELEMENTWISE:
            continue
        found = [(tensor, optimizer.state[tensor]) for tensor in group["params"] if tensor in optimizer.state]
        for tensor, values in found:
            if values.keys() != found[0][1].keys():
                raise ValueError("the states of two parameters differ in their keys")
            for name, value in values.items():
                if isinstance(value, torch.Tensor) and value.ndim and value.shape != tensor.shape:
                    raise ValueError(f"{name} is {tuple(value.shape)} for a parameter {tuple(tensor.shape)}")
