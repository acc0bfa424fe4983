"""Posteriors over weights: Gaussian, or Gaussian under a random mask (spike and slab)."""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune import functional
from stochprune.nn import masked_layers
from stochprune.nn.layer import MaskedLayer
from stochprune.nn.random_weights import RandomLayer, randomise_weights
from stochprune.pac_bayes.posterior import Posterior, mask_curvature
from stochprune.pac_bayes.prior import Prior


class WeightPosterior(Posterior):
    """A posterior over the weights of linear layers and convolutions; other masked layers keep the prior's masks.

    The network must use the weights only through these layers: code that reads ``layer.weight`` gets the mean, which is
    not random and which the KL does not count.

    Raises:
        ValueError: no such layer, or layers that share their weight.
    """

    masked = False

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior)
        if len({id(layer.weight) for layer in self.layers.values()}) < len(self.layers):
            raise ValueError("a posterior over weights needs layers that do not share a weight")
        self.model = randomise_weights(self.model, prior.sigma, masked=self.masked)
        self.layers = masked_layers(self.model)
        self.random = {name: layer for name, layer in self.layers.items() if isinstance(layer, RandomLayer)}
        if not self.random:
            raise ValueError("a posterior over weights needs at least one linear layer or convolution")
        self.start = {
            name: (layer.weight.detach().clone(), layer.sigma.detach()) for name, layer in self.random.items()
        }
        self.start_logits = {name: layer.mask_logits.detach().clone() for name, layer in self.layers.items()}

    def kl(self) -> dict[str, Tensor]:
        found = {}
        for name, layer in self.layers.items():
            logits0 = self.start_logits[name]
            if not isinstance(layer, RandomLayer):
                found[name] = layer.divergence(logits0)
            elif self.masked:
                args = layer.mask_logits, layer.weight, layer.sigma, logits0, *self.start[name]
                found[name] = functional.spike_and_slab_kl(*args)
            else:
                found[name] = functional.gaussian_kl(layer.weight, layer.sigma, *self.start[name])
        return found

    def masks(self) -> dict[str, MaskedLayer]:
        return {name: layer for name, layer in self.layers.items() if self.masked or name not in self.random}

    @torch.no_grad()
    def curvatures(self) -> list[tuple[Tensor, Tensor]]:
        found = []
        for name, layer in self.random.items():
            mean0, sigma0 = self.start[name]
            logits, logits0 = layer.mask_logits, self.start_logits[name]
            q = torch.sigmoid(torch.maximum(logits, logits0)) if self.masked else torch.ones_like(mean0)
            wide = (layer.sigma / sigma0).square().clamp_min(1).to(q)
            # ln(sigma) has curvature 2 (sigma / sigma0)^2; d ln(softplus(rho)) / d rho = sigmoid / softplus
            slope = torch.sigmoid(layer.rho) / layer.sigma.to(q)
            found += [(layer.weight, q / sigma0.to(q) ** 2), (layer.rho, 2 * q * wide * slope**2)]
            if self.masked:
                found.append((logits, mask_curvature(logits, logits0)))
        return found


class SpikeAndSlabPosterior(WeightPosterior):
    """A :class:`WeightPosterior` whose masks are trained too."""

    masked = True
