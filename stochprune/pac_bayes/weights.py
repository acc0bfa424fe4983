"""Posteriors over weights: Gaussian, or Gaussian under a random mask (spike and slab)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stochprune import functional
from stochprune.nn import MaskedLinear
from stochprune.nn.layer import MaskedLayer
from stochprune.pac_bayes.posterior import Posterior, mask_curvature
from stochprune.pac_bayes.prior import Prior


class RandomLinear(MaskedLinear):
    """A masked layer whose weights have normal noise too: the weight is the mean, softplus(rho) the deviation.

    With ``slab`` the masks stay. Without, the mean is that of the masked weight, q * weight, and there is no mask.
    """

    rho: Tensor
    slab: bool

    @classmethod
    def of(cls, layer: MaskedLinear, sigma: float, slab: bool) -> RandomLinear:
        """The layer over copies of the parameters of ``layer``."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.__dict__.update({k: v for k, v in layer.__dict__.items() if not k.startswith("_")})
        made._last_draw, made._checkpointed = None, 0
        q = 1.0 if slab else torch.sigmoid(layer.mask_logits)
        made.weight = nn.Parameter(layer.weight * q)
        # softplus(rho) = sigma in float64 to the last digit that float32 holds
        rho = torch.tensor(sigma, dtype=torch.float64).expm1().log()
        made.rho = nn.Parameter(torch.full_like(layer.weight, rho.item()))
        made.mask_logits = nn.Parameter(layer.mask_logits.clone(), requires_grad=slab)
        made.bias = layer.bias
        for name in ("mask_seed", "mask_draw"):
            made.register_buffer(name, getattr(layer, name))
        made.slab = slab
        return made

    @property
    def sigma(self) -> Tensor:
        """The standard deviations [N, K], float64."""
        return nn.functional.softplus(self.rho.double())

    def forward(self, x: Tensor) -> Tensor:
        return functional.spike_and_slab_linear(
            x,
            self.weight,
            self.rho,
            self.mask_logits if self.slab else None,
            self.bias,
            seed=self.mask_seed,
            draw=self.next_draw().squeeze(0),
            stream=self.stream,
            estimator=self.estimator,
            temperature=self.temperature,
        )


class WeightPosterior(Posterior):
    """A posterior over the weights of the linear layers; other masked layers keep the prior's random masks.

    Raises:
        ValueError: no linear layer, or two that share their weight.
    """

    slab = False

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior)
        linear = {name: layer for name, layer in self.layers.items() if isinstance(layer, MaskedLinear)}
        if len({id(layer.weight) for layer in linear.values()}) < max(1, len(linear)):
            raise ValueError("a posterior over weights needs linear layers that share no weight")
        for name, layer in linear.items():
            self.layers[name] = RandomLinear.of(layer, prior.sigma, self.slab)
            parent, _, leaf = name.rpartition(".")[0].rpartition(".")
            if leaf:
                setattr(self.model.get_submodule(parent), leaf, self.layers[name])
            else:
                self.model = self.layers[name]
        self.random = {name: layer for name, layer in self.layers.items() if isinstance(layer, RandomLinear)}
        self.start = {
            name: (layer.weight.detach().clone(), layer.sigma.detach()) for name, layer in self.random.items()
        }
        self.start_logits = {name: layer.mask_logits.detach().clone() for name, layer in self.layers.items()}

    def kl(self) -> dict[str, Tensor]:
        found = {}
        for name, layer in self.layers.items():
            logits, logits0 = layer.mask_logits, self.start_logits[name]
            if not isinstance(layer, RandomLinear):
                found[name] = functional.bernoulli_kl(logits, logits0)
            elif self.slab:
                args = logits, layer.weight, layer.sigma, logits0, *self.start[name]
                found[name] = functional.spike_and_slab_kl(*args)
            else:
                found[name] = functional.gaussian_kl(layer.weight, layer.sigma, *self.start[name])
        return found

    def masks(self) -> dict[str, MaskedLayer]:
        return {name: layer for name, layer in self.layers.items() if self.slab or name not in self.random}

    @torch.no_grad()
    def curvatures(self) -> list[tuple[Tensor, Tensor]]:
        found = []
        for name, layer in self.random.items():
            mean0, sigma0 = self.start[name]
            logits, logits0 = layer.mask_logits, self.start_logits[name]
            q = torch.sigmoid(torch.maximum(logits, logits0)) if self.slab else torch.ones_like(mean0)
            wide = (layer.sigma / sigma0).square().clamp_min(1).to(q)
            # ln(sigma) has curvature 2 (sigma / sigma0)^2; d ln(softplus(rho)) / d rho = sigmoid / softplus
            slope = torch.sigmoid(layer.rho) / layer.sigma.to(q)
            found += [(layer.weight, q / sigma0.to(q) ** 2), (layer.rho, 2 * q * wide * slope**2)]
            if self.slab:
                found.append((logits, mask_curvature(logits, logits0)))
        return found


class SpikeAndSlabPosterior(WeightPosterior):
    """As :class:`WeightPosterior`, with masks that are trained too."""

    slab = True
