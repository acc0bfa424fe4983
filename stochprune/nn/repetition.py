"""Find the forward pass of a layer that activation checkpointing repeats inside a backward pass."""

from __future__ import annotations

import sys
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction

SEVERAL = (
    "activation checkpointing: this masked layer ran several times before one backward; run each forward's backward "
    "first, or give draws to stochprune.functional"
)
_REENTRANT = (CheckpointFunction.forward.__code__, CheckpointFunction.backward.__code__)


class Awaiting:
    """The draws of the forward passes that may be repeated, each with objects that its graph keeps alive.

    Non-reentrant checkpointing sets hooks on the tensors that a forward pass saves; the hooks live as long as the
    graph. While only one such graph exists, it is known which forward pass is repeated. Reentrant checkpointing runs
    the forward pass and its repetition under one autograd node, which always identifies the forward pass.
    """

    def __init__(self) -> None:
        self._draws: list[tuple[list[weakref.ref[Any]], Tensor]] = []

    def add(self, draw: Tensor, owners: list[Any]) -> None:
        """Store the draw of a forward pass that may be repeated, and the objects of its graph (:func:`owners`)."""
        self._draws = [entry for entry in self._draws if any(owner() is not None for owner in entry[0])]
        self._draws.append(([weakref.ref(owner) for owner in owners], draw))

    def find(self) -> Tensor | None:
        """Return the draw of the forward pass that is repeated now; None if no draw is stored.

        Raises:
            RuntimeError: there are several candidates, and nothing distinguishes them.
        """
        nodes = {id(node) for node in _nodes()}
        alive = [(owners, draw) for refs, draw in self._draws if (owners := {id(ref()) for ref in refs} - {id(None)})]
        found = [draw for owners, draw in alive if owners & nodes] or [draw for _, draw in alive]
        if len(found) > 1:
            raise RuntimeError(SEVERAL)
        return found[0] if found else None


def owners() -> list[Any]:
    """Return objects that the graph of the current forward pass keeps alive; none if it cannot be repeated."""
    found = [] if torch.is_grad_enabled() else _nodes()
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is not None and not getattr(hooks[0], "of_fused_masking", False):
        found.append(hooks[1])
    return found


def _nodes() -> list[Any]:
    """Return the nodes of reentrant checkpointing in the current call stack."""
    nodes, frame = [], sys._getframe(1)
    while frame is not None:
        if frame.f_code in _REENTRANT:
            nodes.append(frame.f_locals["ctx"])
        frame = frame.f_back  # type: ignore[assignment]
    return nodes
