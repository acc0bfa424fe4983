"""Shared by the tests of ops: masks written for autograd, saved memory, calls of a backend."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from stochprune import rng
from stochprune.backends import Backend

AT = {"seed": 2**64 - 3, "draw": 11, "stream": 5}


def mask_at(logits: Tensor, estimator: str, temperature: float) -> Tensor:
    """Return the mask z of logits [N, ...] at the address ``AT``, with the gradients of the estimator.

    It has the value of one expression and the gradient of another, because a part is detached.
    """
    flat = logits.flatten(1)
    u = rng.uniform16(*flat.shape, **AT) & 0x7FFF
    hard = (u < rng.threshold_from_logits(flat).int()).to(logits.dtype)
    mean, soft = torch.sigmoid(flat), torch.sigmoid((flat - torch.logit((u.double() + 0.5) / 32768)) / temperature)
    z = {
        "straight_through": hard + mean - mean.detach(),
        "concrete": soft,
        "straight_through_concrete": hard + soft - soft.detach(),
        "expected": mean,
        "hard_concrete": (1.2 * soft - 0.1).clamp(0, 1),
    }[estimator]
    return z.view(logits.shape)


def saved_bytes(forward: Callable[[], object], inputs: Iterable[Tensor]) -> list[int]:
    """Return the bytes of each tensor that a forward saves for its backward, without the memory of ``inputs``."""
    owned, found = {tensor.untyped_storage().data_ptr() for tensor in inputs}, []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in owned:
            found.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return found


def recorded(monkeypatch: pytest.MonkeyPatch, backend: Backend, function: str, option: str) -> list[Any]:
    """Return a list to which each later call of a backend's function appends one of its options."""
    found: list[Any] = []
    original = getattr(backend, function)
    monkeypatch.setattr(backend, function, lambda *a, **k: found.append(k[option]) or original(*a, **k))
    return found
