"""Helpers of the tests that derive a pruning method in a few lines of plain torch."""

from __future__ import annotations

import torch

WEIGHTS = ("0.weight", "2.weight")
"""The prunable weights of the small model."""


def batches_of(loader, epochs):
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        yield from loader


def by_name(dense):
    """Copies of the parameters of a model, to train by hand."""
    return {name: value.detach().clone().requires_grad_() for name, value in dense.named_parameters()}


def largest(values, count):
    """bool masks of the ``count`` largest of all values."""
    bound = torch.cat([value.flatten() for value in values.values()]).sort(descending=True).values[count - 1]
    return {name: value >= bound for name, value in values.items()}


def close(model, params, masks, atol=1e-6):
    for name, value in params.items():
        expected = value * masks[name] if name in masks else value
        assert torch.allclose(model.get_parameter(name), expected, atol=atol), name
