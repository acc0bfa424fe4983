"""A linear layer with Gaussian weights: ours, PBB's, bayesian-torch's, and local reparameterisation."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from stochprune import functional, rng
from stochprune.extras import extra

from .. import laws
from ..case import Case, Verdict, Way
from ..laws import Pass
from .layer import SEED, STREAM, Forward, LayerOp, Make, Within, counter
from .linear_ways import compile_fresh

LOCAL = "ours, local"


class GaussianLinear(LayerOp):
    """``x w^T + bias`` with w of N(weight, softplus(rho)^2); shape: rows, cols, tokens.

    The law ``local`` samples the pre-activations instead of the weights, with the same mean and variance.
    """

    parameter = "rho"
    laws: Mapping[str, str] = {
        "dense": "none",
        "ours": "gaussian",
        "eager": "gaussian",
        "compile": "gaussian",
        "bayesian-torch": "gaussian",
        LOCAL: "local",
        "eager, local": "local",
    }

    def made(self, contender: str, case: Case, like: Tensor) -> tuple[Make, Within]:
        """Return the function that makes a contender, and no context."""
        return CONTENDERS[contender], contextlib.nullcontext

    def wrong(self, contender: str, case: Case, way: Way, one: Pass, other: Pass) -> str | None:
        """Compare with the law of the contender."""
        mu, rho = (way.tensors[name].detach().double() for name in ("weight", "rho"))
        if self.laws[contender] == "none":
            return laws.fixed(mu, one)
        law = laws.local if self.laws[contender] == "local" else laws.gaussian
        return law(mu, F.softplus(rho), torch.sigmoid(rho), one, other)

    def exact(self, contender: str, case: Case, small: Case, way: Way, one: Pass) -> Verdict:
        """Compare the weights, or the pre-activations, with those that the contract's normals give."""
        mu, rho = (way.tensors[name].detach().double() for name in ("weight", "rho"))
        mean, deviation, found = mu, F.softplus(rho), one.sampled
        if contender == LOCAL:
            x = one.x.double()
            mean, deviation, found = x @ mu.T, (x.square() @ deviation.square().T).sqrt(), one.y
        e = rng.normal(*mean.shape, seed=SEED, draw=1, stream=STREAM, device=mean.device)
        return Verdict(laws.near("the contract's value", found, mean + deviation * e, one.dtype))


def dense(mu: Tensor, rho: Tensor, bias: Tensor) -> Forward:
    """Return the layer with the mean weights. Its time is the lower bound."""
    return lambda x: F.linear(x, mu, bias)


def eager(mu: Tensor, rho: Tensor, bias: Tensor) -> Forward:
    """Return the layer of PBB: a normal for each weight (Perez-Ortiz et al. 2021, "Tighter risk certificates")."""
    return lambda x: F.linear(x, mu + F.softplus(rho) * torch.randn_like(mu), bias)


def compiled(mu: Tensor, rho: Tensor, bias: Tensor) -> Forward:
    """Return the eager layer under ``torch.compile``."""
    return compile_fresh(eager(mu, rho, bias))


def eager_local(mu: Tensor, rho: Tensor, bias: Tensor) -> Forward:
    """Return the layer under local reparameterisation in plain PyTorch."""

    def forward(x: Tensor) -> Tensor:
        deviation = F.linear(x.square(), F.softplus(rho).square()).sqrt()
        return F.linear(x, mu, bias) + deviation * torch.randn_like(deviation)

    return forward


def bayesian_torch(mu: Tensor, rho: Tensor, bias: Tensor) -> Forward:
    """Return bayesian-torch's layer; the deviation of its bias is 0, and it computes no KL.

    Raises:
        MissingExtraError: bayesian-torch is not installed.
    """
    with extra("peers", "this contender"):
        from bayesian_torch.layers.variational_layers.linear_variational import LinearReparameterization
    layer = LinearReparameterization(*mu.shape[::-1]).to(mu)
    layer.mu_weight, layer.rho_weight, layer.mu_bias = mu, rho, bias
    layer.rho_bias.requires_grad_(False).fill_(-torch.inf)
    return lambda x: layer(x, return_kl=False)


def ours(mu: Tensor, rho: Tensor, bias: Tensor) -> Forward:
    """Return a layer that calls stochprune.functional.spike_and_slab_linear without masks."""
    seed, draws = counter(mu.device)

    def forward(x: Tensor) -> Tensor:
        return functional.spike_and_slab_linear(x, mu, rho, None, bias, seed=seed, draw=draws(), stream=STREAM)

    return forward


def ours_local(mu: Tensor, rho: Tensor, bias: Tensor) -> Forward:
    """Return a layer that calls stochprune.functional.local_reparameterised_linear."""
    seed, draws = counter(mu.device)

    def forward(x: Tensor) -> Tensor:
        return functional.local_reparameterised_linear(x, mu, None, rho, bias, seed=seed, draw=draws(), stream=STREAM)

    return forward


CONTENDERS = {
    "dense": dense,
    "ours": ours,
    "eager": eager,
    "compile": compiled,
    "bayesian-torch": bayesian_torch,
    LOCAL: ours_local,
    "eager, local": eager_local,
}
