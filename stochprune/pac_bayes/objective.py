"""The bounds as training objectives, and the natural gradient that minimises them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from stochprune import bounds
from stochprune.pac_bayes.config import SelfBoundConfig
from stochprune.pac_bayes.loss import bounded_cross_entropy, soft_zero_one
from stochprune.pac_bayes.posterior import Posterior
from stochprune.training.constraint import Constraint
from stochprune.training.state import State


class Objective(nn.Module):
    """The objective f(r, KL(Q || P)) of a batch; its buffers contain everything that a resumed run needs.

    Args:
        posterior: the posterior to train.
        m: the number of certifying examples.
        delta: probability that the bound fails.
        steps: the number of steps of the training, over which the temperature of the surrogate falls.
    """

    sums: Tensor
    lam: Tensor
    step: Tensor

    def __init__(self, posterior: Posterior, m: int, delta: float, config: SelfBoundConfig, *, steps: int = 1) -> None:
        super().__init__()
        self.posterior, self.m, self.delta, self.config, self.steps = posterior, m, delta, config, steps
        self.slope = 1 / m
        """df/dKL at the last batch."""
        device = next(posterior.parameters()).device
        # of the risk, of 1, over the epoch's batches
        self.register_buffer("sums", torch.zeros(2, dtype=torch.float64, device=device))
        self.register_buffer("lam", torch.ones((), dtype=torch.float64, device=device))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        return self.posterior(x)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the objective of one batch, float64."""
        risk = self.surrogate(outputs, y).double().mean()
        self.step += 1
        kl = torch.stack(list(self.posterior.kl().values())).sum()
        self.sums += torch.stack((risk.detach(), torch.ones_like(risk)))
        at = kl.detach().requires_grad_(True)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.bound(risk.detach(), at), at)
        self.slope = slope.item()
        return self.bound(risk, kl)

    def surrogate(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the configured loss of each example, [B] in [0, 1], at the temperature of this step."""
        if self.config.surrogate == "cross_entropy":
            return bounded_cross_entropy(outputs, y, self.config.p_min)
        first, last = self.config.first_softness, self.config.last_softness
        return soft_zero_one(outputs, y, first * (last / first) ** (self.step.item() / self.steps))

    def bound(self, risk: Tensor, kl: Tensor) -> Tensor:
        """Return the configured bound at a risk and a KL."""
        delta, kl = self.delta, self.config.kl_penalty * kl
        match self.config.objective:
            case "quadratic":
                return bounds.quadratic(risk, kl, self.m, delta)
            case "classic":
                return bounds.mcallester(risk, kl, self.m, delta)
            case "lambda":
                return bounds.lam(risk, kl, self.m, delta, self.lam.item())
            case _:
                return bounds.maurer(risk, kl, self.m, delta)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Return the numbers of the epoch that has ended, and set lambda to its optimum."""
        risk = (self.sums[0] / self.sums[1]).item()
        layers = {name: value.item() for name, value in self.posterior.kl().items()}
        kl = math.fsum(layers.values())
        numbers = {"risk": risk, "kl": kl, "lam": self.lam.item()}
        self.lam.fill_(bounds.optimal_lambda(risk, self.config.kl_penalty * kl, self.m, self.delta))
        self.sums.zero_()
        return numbers | {f"kl {name}": value for name, value in layers.items()}


class NaturalGradient(Constraint):
    """Divides each gradient by df/dKL and by the curvature of the KL.

    A step of rate 1 goes to the minimum of the batch's linearised risk plus a quadratic approximation of the KL.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def before_step(self) -> None:
        for tensor, curvature in self.objective.posterior.curvatures():
            if tensor.grad is not None:
                tensor.grad.div_(curvature * self.objective.slope)

    def measure(self, state: State) -> dict[str, float]:
        return self.objective.measure()
