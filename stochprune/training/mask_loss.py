"""mask_loss: prices on the masks of a whole model, as a term of the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stochprune import functional
from stochprune.arguments import checked
from stochprune.nn.kl import layer_kl
from stochprune.nn.layer import MaskedLayer
from stochprune.nn.members import layers_of
from stochprune.runs.config import LIMIT
from stochprune.shards import sum_by_layout


@checked
def mask_loss(
    model: nn.Module,
    *,
    l0: float = 0.0,
    kl: float = 0.0,
    prior_logits: Mapping[str, Tensor | float] | float | None = None,
    accumulation: int = 1,
) -> Tensor:
    """Return ``(l0 * expected number of kept weights + kl * KL of the masks from a prior) / accumulation``.

    Both terms belong to a step of the optimiser, not to an example or a batch. If the gradients of k micro-batches are
    added before a step, each adds 1/k of them. Where you divide the sum of all terms by k yourself, or where Lightning
    or accelerate does, leave ``accumulation`` at 1::

        loss = loss_fn(model(x), y) + sp.mask_loss(model, l0=1e-6)
        (loss / k).backward()

    Args:
        model: a model from :func:`stochprune.convert`.
        l0: the price of one kept weight (Louizos, Welling and Kingma 2018, arXiv 1712.01312). The expected number is
            the sum of the keep probabilities; of estimator hard_concrete, :func:`stochprune.functional.expected_l0`.
            A logit of a block or a filter counts all of its weights. Layers that keep a fixed number (N:M) add a
            constant.
        kl: the price of one nat of KL(Q || P), summed over all masks. 1 / (number of training examples) makes the loss
            the evidence lower bound.
        prior_logits: of P: by weight name, see :func:`stochprune.nn.layer_kl`, or one number for all weights.
        accumulation: the number of micro-batches whose gradients are added before a step, at least 1.

    Returns:
        float64 scalar, differentiable in the logits. Masks of tied weights count once.

    Raises:
        TypeError: an argument of another type.
        ValueError: no masked layer, a price that is negative or not finite, ``accumulation`` below 1, a KL without a
            prior, or a prior that does not fit.
    """
    layers = {layer.mask_logits: layer for layer in layers_of("mask_loss", model).values()}.values()
    for name, price in (("l0", l0), ("kl", kl)):
        if not 0 <= price < math.inf:
            raise ValueError(f"mask_loss: {name} must be at least 0 and finite, got {price}")
    if not 1 <= accumulation < LIMIT:
        raise ValueError(f"mask_loss: accumulation must be at least 1 and below 2^64, got {accumulation}")
    total = torch.zeros((), dtype=torch.float64, device=next(iter(layers)).mask_logits.device)
    if l0:
        total = total + l0 * torch.stack([_expected_kept(layer).to(total.device) for layer in layers]).sum()
    if kl:
        if prior_logits is None:
            raise ValueError(
                "mask_loss: kl needs prior_logits, such as {name: layer.mask_logits.detach().clone() for name, layer "
                "in stochprune.nn.masked_layers(model).items()} before the training"
            )
        if not isinstance(prior_logits, Mapping):
            prior_logits = dict.fromkeys(layers_of("mask_loss", model), float(prior_logits))
        total = (
            total + kl * torch.stack([term.to(total.device) for term in layer_kl(model, prior_logits).values()]).sum()
        )
    return total / float(accumulation)


def _expected_kept(layer: MaskedLayer) -> Tensor:
    """Return the expected number of kept weights of a layer, a float64 scalar."""
    logits = layer.mask_logits
    if layer.own_sparsity:
        return sum_by_layout(lambda parts: parts[0].sum(dtype=torch.float64), [layer.mask()])
    if layer.estimator == "hard_concrete":
        kept = sum_by_layout(lambda parts: functional.expected_l0(parts[0], layer.temperature), [logits])
    else:
        kept = sum_by_layout(lambda parts: torch.sigmoid(parts[0]).sum(dtype=torch.float64), [logits])
    return kept * (layer.weight.numel() / max(1, logits.numel()))
