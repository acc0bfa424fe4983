"""Small masked networks, the same in every process."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import stochprune as sp
from stochprune.shards import gathered


def masked(dense: nn.Module, **options) -> nn.Module:
    """Return a converted network with random weights and logits of its own, the same wherever it is called."""
    generator = torch.Generator().manual_seed(3)
    for parameter in dense.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    model = sp.convert(dense, keep_kept=0.6, **options)
    with torch.no_grad():
        for layer in sp.nn.masked_layers(model).values():
            layer.mask_logits += torch.randn(layer.mask_logits.shape, generator=generator)
    return model


def mlp(hidden: int = 8, **options) -> nn.Sequential:
    """A network of 6 inputs and 4 outputs; its part ``[2]`` is a block for FSDP2."""
    with torch.random.fork_rng([]):
        block = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU())
        dense = nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), block, nn.Linear(hidden, 4))
    return masked(dense, **options)


def batch(rows: int = 8, features: int = 6) -> Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(5))


def loss(y: Tensor) -> Tensor:
    """The mean over all outputs, so that the mean of equal shares' losses is that of the whole batch."""
    return (y.float() - torch.arange(y.shape[-1])).square().mean()


def whole(tensor: Tensor) -> Tensor:
    return gathered(tensor.detach())


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Compare tensors by name; the tolerance is relative to the largest entry of each."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        limit = tolerance * max(1.0, float(value.detach().abs().max()))
        error = float((whole(found[name]).double() - value.detach().double()).abs().max())
        assert error <= limit, f"{name} differs by {error}, more than {limit}"


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients that are there by name; an optimiser needs them split like the parameters."""
    found = {name: p for name, p in model.named_parameters() if p.grad is not None}
    for name, p in found.items():
        assert getattr(p.grad, "placements", None) == getattr(p, "placements", None), name
    return {name: p.grad for name, p in found.items()}


def masks(model: nn.Module, draw: int) -> dict[str, Tensor]:
    """Return the whole masks of a draw by weight name, as numbers."""
    return {name: whole(layer.mask(draw)).float() for name, layer in sp.nn.masked_layers(model).items()}
