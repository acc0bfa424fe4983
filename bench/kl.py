"""Benchmark of the KL ops on the CPU against the formulas in plain PyTorch, in one run.

    python -m bench.kl            # half a minute; prints a table

The times are medians of the processor time of one thread for value and gradients, in rounds in which the contenders
take turns. The contender *eager* is the formula in torch operations with autograd.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from bench.tables import table
from bench.turns import medians, take_turns
from stochprune import functional, rng

Contender = Callable[..., Tensor]
COLUMNS = ("op", "contender", "ns per weight", "times ours", "relative difference from the reference")


def eager_bernoulli(logits: Tensor, prior: Tensor) -> Tensor:
    """Return the sum of KL(Bernoulli(sigmoid(logits)) || Bernoulli(sigmoid(prior)))."""
    return (torch.sigmoid(logits) * (logits - prior) - F.softplus(logits) + F.softplus(prior)).sum()


def eager_gaussian(*tensors: Tensor) -> Tensor:
    """Return the sum of KL(N(mu, sigma^2) || N(prior_mu, prior_sigma^2))."""
    mu, sigma, prior_mu, prior_sigma = tensors
    return kl_divergence(Normal(mu, sigma), Normal(prior_mu, prior_sigma)).sum()


def wide(contender: Contender) -> Contender:
    """Return the contender on its inputs in float64."""
    return lambda *tensors: contender(*(t.double() for t in tensors))


CASES: dict[str, tuple[dict[str, Contender], int]] = {  # the contenders, and how many of the inputs are trained
    "bernoulli_kl": (
        {"ours": functional.bernoulli_kl, "eager": eager_bernoulli, "eager, float64": wide(eager_bernoulli)},
        1,
    ),
    "gaussian_kl": (
        {"ours": functional.gaussian_kl, "eager": eager_gaussian, "eager, float64": wide(eager_gaussian)},
        2,
    ),
}


def inputs(op: str, count: int) -> list[Tensor]:
    """Return float32 [count] tensors of a posterior near its prior, as during the minimisation of a bound."""
    generator = torch.Generator().manual_seed(0)
    prior, step, spread = (torch.randn(count, generator=generator) for _ in range(3))
    if op == "bernoulli_kl":
        # These logits have exactly representable probabilities, so quantisation plays no part.
        level = lambda logits: rng.threshold_from_logits(logits).double() / rng.LEVELS  # noqa: E731
        return [torch.logit(level(logits)).float() for logits in (prior + 0.01 * step, prior)]
    sigma = F.softplus(spread)
    return [prior + 0.01 * step, 1.01 * sigma, prior, sigma]


def measure(op: str, count: int, rounds: int) -> list[list[str]]:
    """Return the rows of one op, on ``count`` weights: value and gradients by each contender."""
    contenders, trained = CASES[op]
    tensors = inputs(op, count)
    exact = wide(functional.bernoulli_kl if op == "bernoulli_kl" else functional.gaussian_kl)(*tensors).item()
    leaves = [t.detach().requires_grad_(i < trained) for i, t in enumerate(tensors)]
    values: dict[str, float] = {}

    def step(name: str) -> None:
        value = contenders[name](*leaves)
        torch.autograd.grad(value, leaves[:trained])
        values[name] = value.item()

    ns = medians(take_turns({name: partial(step, name) for name in contenders}, rounds), 1e9 / count)
    return [
        [op, name, f"{ns[name]:.1f}", f"{ns[name] / ns['ours']:.1f}", f"{abs(values[name] / exact - 1):.0e}"]
        for name in contenders
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1 << 22, help="number of weights")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(table(COLUMNS, (row for op in CASES for row in measure(op, options.count, options.rounds))))


if __name__ == "__main__":
    main()
