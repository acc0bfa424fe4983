"""Masks over all prunable weights: what the methods that learn such masks have in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stochprune.masks.select import from_scores, sparsity
from stochprune.nn import convert, masked_layers
from stochprune.nn.harden import cut
from stochprune.scores import prunable_weights
from stochprune.training.pruning import Pruned


def convert_all(model: nn.Module, keep: float, seed: int) -> nn.Module:
    """Convert a model, in place; every prunable weight is kept with probability ``keep``."""
    everything = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable_weights(model).items()}
    return convert(model, everything, keep_kept=keep, seed=seed)


def mask_logits(model: nn.Module) -> list[Tensor]:
    """Return the logits of the keep probabilities of a model, those of tied weights once."""
    return list({id(layer.mask_logits): layer.mask_logits for layer in masked_layers(model).values()}.values())


def share_pruned(model: nn.Module) -> float:
    """Return the fraction of the masked weights that evaluation mode prunes."""
    return sparsity({name: layer.mask() for name, layer in masked_layers(model).items()})


def cut_lowest(model: nn.Module, target: float, history: list[dict[str, float]]) -> Pruned:
    """Prune to a sparsity by the lowest logits of all, in place; the result has this history."""
    layers = masked_layers(model)
    logits = {name: layers[name].mask_logits.detach() for name in prunable_weights(model)}
    masks = from_scores(logits, target, allow_empty=True)
    return Pruned(cut(model, masks), masks, history)
