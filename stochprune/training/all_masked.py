"""Masks over all prunable weights: what the methods that learn such masks have in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stochprune.masks.select import from_scores
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
    masks = [layer.mask() for layer in masked_layers(model).values()]
    return 1 - sum(int(mask.sum()) for mask in masks) / max(1, sum(mask.numel() for mask in masks))


def cut_lowest(model: nn.Module, sparsity: float, history: list[dict[str, float]]) -> Pruned:
    """Keep the weights of the highest logits of all, in place; the result has this history."""
    layers = masked_layers(model)
    logits = {name: layers[name].mask_logits.detach() for name in prunable_weights(model)}
    masks = from_scores(logits, sparsity, allow_empty=True)
    return Pruned(cut(model, masks), masks, history)
