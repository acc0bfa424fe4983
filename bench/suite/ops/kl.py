"""The KL divergence of masks, and of Gaussian weights, from their prior: ours, and the formula in plain PyTorch."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from stochprune import functional, rng

from ..case import Case, Verdict, Way, Work
from ..laws import near

WIDE = "float64"


class KL(abc.ABC):
    """A sum over weights, with its gradients; shape: weights. The contender ``float64`` converts its float32 inputs.

    Attributes:
        names: of the inputs.
        trained: number of the inputs that have a gradient, the first ones.
    """

    baseline = ""
    laws: Mapping[str, str] = {"ours": "kl", "eager": "kl", WIDE: "kl"}
    names: tuple[str, ...]
    trained: int

    @staticmethod
    @abc.abstractmethod
    def ours(*tensors: Tensor) -> Tensor:
        """Return the divergence by this package."""

    @staticmethod
    @abc.abstractmethod
    def eager(*tensors: Tensor) -> Tensor:
        """Return the divergence in plain PyTorch."""

    @staticmethod
    @abc.abstractmethod
    def inputs(prior: Tensor, step: Tensor, spread: Tensor) -> list[Tensor]:
        """Return the inputs of a posterior that is ``step`` from its prior."""

    def make(self, contender: str, case: Case, device: torch.device) -> Way:
        """Return a contender at the case's shape."""
        return self._way(contender, case.shape["weights"], device)

    def check(self, contender: str, case: Case, device: torch.device) -> Verdict:
        """Compare the value and the gradients with those of the formula in float64, at the case's shape."""
        # Far from the prior, because float32 loses digits near it: 6e-5 of the value of 10,000 Bernoulli weights.
        one, exact = (self._way(name, case.shape["weights"], device, distance=1) for name in (contender, WIDE))
        value, expected = one.forward(), exact.forward()
        wrong = near("value", value.detach(), expected.detach(), torch.float32)
        right = exact.backward(expected)
        for name, grad in one.backward(value).items():
            wrong = wrong or near(f"gradient of {name}", grad, right[name].double(), torch.float32)
        return Verdict(wrong)

    def work(self, case: Case, part: str) -> Work:
        """Count the bytes of the inputs, in each direction, and of the gradients; operations are few."""
        size, weights = torch.float32.itemsize, case.shape["weights"]
        read, written = size * len(self.names) * weights, size * self.trained * weights
        return Work(0, {"forward": read, "backward": read + written, "step": 2 * read + written}[part])

    def _way(self, contender: str, weights: int, device: torch.device, distance: float = 0.01) -> Way:
        numbers = torch.Generator().manual_seed(0)
        prior, step, spread = (torch.randn(weights, generator=numbers) for _ in range(3))
        made = self.inputs(prior, distance * step, spread)
        inputs = [t.to(device).requires_grad_(i < self.trained) for i, t in enumerate(made)]
        ways: dict[str, Callable[..., Tensor]] = {"ours": self.ours, "eager": self.eager}
        way = ways.get(contender, lambda *tensors: self.eager(*(t.double() for t in tensors)))
        return Way(lambda: way(*inputs), dict(zip(self.names, inputs, strict=True)), None, weights)


class BernoulliKL(KL):
    """The sum of KL(Bernoulli(sigmoid(logits)) || Bernoulli(sigmoid(prior)))."""

    names, trained = ("logits", "prior"), 1

    @staticmethod
    def ours(*tensors: Tensor) -> Tensor:
        """Return the divergence by stochprune.functional.bernoulli_kl."""
        return functional.bernoulli_kl(*tensors)

    @staticmethod
    def eager(*tensors: Tensor) -> Tensor:
        """Return the divergence from the logits."""
        logits, prior = tensors
        return (torch.sigmoid(logits) * (logits - prior) - F.softplus(logits) + F.softplus(prior)).sum()

    @staticmethod
    def inputs(prior: Tensor, step: Tensor, spread: Tensor) -> list[Tensor]:
        """Return logits whose probabilities are multiples of the quantum, so that quantisation plays no part."""
        levels = (rng.threshold_from_logits(logits).double() / rng.LEVELS for logits in (prior + step, prior))
        return [torch.logit(level).float() for level in levels]


class GaussianKL(KL):
    """The sum of KL(N(mu, sigma^2) || N(prior_mu, prior_sigma^2))."""

    names, trained = ("mu", "sigma", "prior_mu", "prior_sigma"), 2

    @staticmethod
    def ours(*tensors: Tensor) -> Tensor:
        """Return the divergence by stochprune.functional.gaussian_kl."""
        return functional.gaussian_kl(*tensors)

    @staticmethod
    def eager(*tensors: Tensor) -> Tensor:
        """Return the divergence by torch.distributions."""
        mu, sigma, prior_mu, prior_sigma = tensors
        return kl_divergence(Normal(mu, sigma), Normal(prior_mu, prior_sigma)).sum()

    @staticmethod
    def inputs(prior: Tensor, step: Tensor, spread: Tensor) -> list[Tensor]:
        """Return means and deviations."""
        sigma = F.softplus(spread)
        return [prior + step, 1.01 * sigma, prior, sigma]
