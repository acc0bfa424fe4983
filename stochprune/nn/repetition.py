"""Which forward of a layer activation checkpointing repeats, inside a backward pass."""

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
    """The draws of the forwards that may be repeated, each known by what its graph keeps alive.

    Non-reentrant checkpointing takes hold of a forward by hooks on the tensors that it saves, which go with the graph:
    a repetition is told from others while a single such graph is there. The reentrant kind runs forward and repetition
    under one node, which tells it always.
    """

    def __init__(self) -> None:
        self._draws: list[tuple[list[weakref.ref[Any]], Tensor]] = []

    def add(self, draw: Tensor, owners: list[Any]) -> None:
        """Note the draw of a forward that may be repeated, and what its graph keeps alive: see :func:`owners`."""
        self._draws = [entry for entry in self._draws if any(owner() is not None for owner in entry[0])]
        self._draws.append(([weakref.ref(owner) for owner in owners], draw))

    def find(self) -> Tensor | None:
        """The draw of the forward that is repeated now; None if there is none that is known.

        Raises:
            RuntimeError: there are several, so that none of them can be told from the others.
        """
        nodes = {id(node) for node in _nodes()}
        alive = [(owners, draw) for refs, draw in self._draws if (owners := {id(ref()) for ref in refs} - {id(None)})]
        found = [draw for owners, draw in alive if owners & nodes] or [draw for _, draw in alive]
        if len(found) > 1:
            raise RuntimeError(SEVERAL)
        return found[0] if found else None


def owners() -> list[Any]:
    """Return what the graph of the forward that runs now keeps alive if it may be repeated, else nothing."""
    found = [] if torch.is_grad_enabled() else _nodes()
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is not None and not getattr(hooks[0], "of_fused_masking", False):
        found.append(hooks[1])
    return found


def _nodes() -> list[Any]:
    """The nodes of reentrant checkpointing that this runs under."""
    nodes, frame = [], sys._getframe(1)
    while frame is not None:
        if frame.f_code in _REENTRANT:
            nodes.append(frame.f_locals["ctx"])
        frame = frame.f_back  # type: ignore[assignment]
    return nodes
