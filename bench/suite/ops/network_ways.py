"""Ways to mask a whole network in place. Each returns its masked layers by the name of the dense weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import stochprune as sp
from stochprune import patterns
from stochprune.nn import masked_layers
from stochprune.nn.layer import MaskedLayer

from .layer import contract_mask
from .linear_nm_ways import gumbel_mask
from .linear_ways import straight_through

PATTERN = 2, 4
"""Pattern n:m of MaskLLM."""
LOGIT = 3.0
"""Logit of each weight at the start; the probability of keeping is 0.95."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One masked layer.

    Attributes:
        module: the layer.
        weight: what is trained, before the mask.
        logits: of the mask; None if no mask is trained.
    """

    module: nn.Module
    weight: Tensor
    logits: Tensor | None = None

    def sampled(self) -> Tensor:
        """Return the masked weight of the first pass; a parametrised one inside ``parametrize.cached``."""
        if isinstance(self.module, MaskedLayer):
            return self.weight * _first(self.module)
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight

    def equal(self) -> bool:
        """Return True if the first mask of one of our layers has the contract's bits."""
        return isinstance(self.module, MaskedLayer) and torch.equal(self.module.mask(0), _first(self.module))


def _first(layer: MaskedLayer) -> Tensor:
    return contract_mask(layer.mask_logits, 0, seed=int(layer.mask_seed.item()), stream=layer.stream)


Parts = dict[str, Part]


class Eager(nn.Module):
    """Masks a weight by :func:`.linear_ways.straight_through`."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.full_like(weight, LOGIT))

    def forward(self, weight: Tensor) -> Tensor:
        return straight_through(weight, self.logits)


class MaskLLM(nn.Module):
    """Masks a weight by MaskLLM's choice of a pattern for each group, see :func:`.linear_nm_ways.maskllm`."""

    table: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        table = patterns.kept(*PATTERN, weight)
        self.register_buffer("table", table)
        rows, cols = weight.shape
        self.logits = nn.Parameter(weight.new_zeros(rows, cols // PATTERN[1], len(table)))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * gumbel_mask(self.logits, self.table)


def dense(model: nn.Module, names: Sequence[str]) -> Parts:
    """Leave the network dense."""
    return {name: Part(module, weight) for name, module, weight in _weights(model, names)}


def ours(model: nn.Module, names: Sequence[str]) -> Parts:
    """Convert the network by stochprune.convert."""
    layers = masked_layers(sp.convert(model))
    return {name: Part(layers[name], layers[name].weight, layers[name].mask_logits) for name in names}


def eager(model: nn.Module, names: Sequence[str]) -> Parts:
    """Mask the weights in plain PyTorch."""
    found = {}
    for name, module, weight in _weights(model, names):
        mask = Eager(weight)
        parametrize.register_parametrization(module, "weight", mask)
        found[name] = Part(module, weight, mask.logits)
    return found


def maskllm(model: nn.Module, names: Sequence[str]) -> Parts:
    """Mask the weights, which are matrices, by :class:`MaskLLM`; the gradient of its logits has no closed form."""
    found = {}
    for name, module, weight in _weights(model, names):
        parametrize.register_parametrization(module, "weight", MaskLLM(weight))
        found[name] = Part(module, weight)
    return found


def pruned(model: nn.Module, names: Sequence[str]) -> Parts:
    """Give the weights fixed masks by torch.nn.utils.prune, which keep the larger half."""
    found = {}
    for name, module, weight in _weights(model, names):
        prune.l1_unstructured(module, "weight", amount=0.5)
        found[name] = Part(module, weight)
    return found


def _weights(model: nn.Module, names: Sequence[str]) -> list[tuple[str, nn.Module, nn.Parameter]]:
    modules = ((name, model.get_submodule(name.rpartition(".")[0])) for name in names)
    return [(name, module, module.get_parameter("weight")) for name, module in modules]


WAYS = {
    "dense": dense,
    "ours": ours,
    "ours, fused masking": ours,
    "eager": eager,
    "MaskLLM": maskllm,
    "torch.nn.utils.prune": pruned,
}
