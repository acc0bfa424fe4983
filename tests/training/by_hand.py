"""Helpers of the tests that derive a pruning method in a few lines of plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.func import functional_call

WEIGHTS = ("0.weight", "2.weight")
"""The prunable weights of the small model."""


def batches_of(loader, epochs):
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        yield from loader


def by_name(dense):
    """Copies of the parameters of a model, to train by hand."""
    return {name: value.detach().clone().requires_grad_() for name, value in dense.named_parameters()}


def masked_steps(dense, loader, params, masks):
    """Train four epochs by Adam and yield the number of each step, after which ``masks`` may change, in place."""
    optimizer = torch.optim.Adam(params.values(), lr=0.02)
    for step, (x, y) in enumerate(batches_of(loader, 4), 1):
        optimizer.zero_grad()
        F.cross_entropy(functional_call(dense, params, (x,)), y).backward()
        for name in WEIGHTS:
            params[name].grad *= masks[name]
        optimizer.step()
        yield step
        with torch.no_grad():
            for name in WEIGHTS:
                params[name] *= masks[name]


def largest(values, count):
    """bool masks of the ``count`` largest of all values."""
    bound = torch.cat([value.flatten() for value in values.values()]).sort(descending=True).values[count - 1]
    return {name: value >= bound for name, value in values.items()}


def close(model, params, masks, atol=1e-6):
    for name, value in params.items():
        expected = value * masks[name] if name in masks else value
        assert torch.allclose(model.get_parameter(name), expected, atol=atol), name
