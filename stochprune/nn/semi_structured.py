"""Hardened 2:4 models in torch's semi-structured layout."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def is_two_of_four(weight: Tensor) -> bool:
    """Return True if at most two of every four neighbours in a row are not 0."""
    if weight.dim() != 2 or weight.shape[1] % 4:
        return False
    return bool((weight.detach().unflatten(1, (-1, 4)).ne(0).sum(-1) <= 2).all())


def semi_structured(model: nn.Module) -> nn.Module:
    """Store the 2:4 sparse weights of a hardened model as torch's semi-structured tensors, in place.

    Only the layout changes: half the weights and two bits for each of these. Whether products become faster depends on
    the shapes and the device, and is not promised. The weights no longer train.

    Args:
        model: on a CUDA device; its ``nn.Linear`` layers of which every four neighbouring weights hold at most two that
            are not 0, as :func:`stochprune.harden` leaves 2:4 masked layers, are converted, the others left alone.

    Returns:
        The model.

    Raises:
        TypeError: not a module.
        ValueError: no such layer, or one that is not on a CUDA device.
        RuntimeError: a dtype or shape that torch's layout does not take (it says which).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"semi_structured: model must be a torch.nn.Module, got {type(model).__name__}")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and is_two_of_four(m.weight)}
    if not layers:
        raise ValueError(
            f"semi_structured: no linear layer of {type(model).__name__} has 2:4 sparse weights: convert with "
            f"pattern='2:4', train and harden it first"
        )
    for name, layer in layers.items():
        if not layer.weight.is_cuda:
            raise ValueError(f"semi_structured: {name or 'the layer'} lies on {layer.weight.device}; torch needs CUDA")
    for layer in layers.values():
        sparse = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
        layer.weight = nn.Parameter(sparse, requires_grad=False)
    return model
