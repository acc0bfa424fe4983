"""Bias and variance of every gradient estimator, on small networks whose exact gradient is known.

The expected loss of such a network is a finite sum over all hard masks. The mean of an estimator over many draws is
compared with the gradient of this sum, and the spread over draws is measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from bench.tables import table
from stochprune import functional, patterns
from stochprune.seeding import generator

BLOCK = 100  # number of draws whose gradients are computed together; variances come from the means of blocks
EXAMPLES = 16


class Problem(NamedTuple):
    """A network without biases and with tanh between its layers, on a few examples."""

    name: str
    x: Tensor  # [M, K]
    target: Tensor  # [M, 1] for the square loss, [M] classes for the cross-entropy
    weights: list[Tensor]
    logits: list[Tensor]

    def loss(self, y: Tensor) -> Tensor:
        """Return the loss [...] of outputs [..., M, N]."""
        if self.target.is_floating_point():
            return (y - self.target).square().mean((-2, -1))
        return -F.log_softmax(y, -1)[..., torch.arange(len(self.target)), self.target].mean(-1)

    def run(self, x: Tensor, layer: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Return the output; ``layer(x, i)`` is the product of the i-th layer."""
        for i in range(len(self.weights)):
            x = layer(x if i == 0 else torch.tanh(x), i)
        return x

    @property
    def trained(self) -> list[Tensor]:
        """Return all tensors that have a gradient."""
        return [*self.logits, *self.weights]


def problem(name: str, sizes: tuple[int, ...], square: bool) -> Problem:
    """Make random data, weights of a usual size, and keep probabilities from about 0.1 to 0.9."""
    numbers = generator(0, "estimators", name)

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(numbers.normal(size=shape)).float()

    shapes = list(zip(sizes[1:], sizes, strict=False))
    weights = [1.5 * normal(*shape) / math.sqrt(shape[1]) for shape in shapes]
    logits = [normal(*shape) for shape in shapes]
    target = normal(EXAMPLES, 1) if square else torch.from_numpy(numbers.integers(sizes[-1], size=EXAMPLES))
    trained = [[t.requires_grad_() for t in group] for group in (weights, logits)]
    return Problem(name, normal(EXAMPLES, sizes[0]), target, *trained)


def exact(p: Problem, pattern: str | None = None) -> list[Tensor]:
    """Return the gradient of the expected loss over all hard masks for ``p.trained``, in float64.

    Args:
        pattern: N:M masks of this pattern instead of independent ones.
    """
    wide = p._replace(
        x=p.x.double(),
        target=p.target.double() if p.target.is_floating_point() else p.target,
        weights=[t.detach().double().requires_grad_() for t in p.weights],
        logits=[t.detach().double().requires_grad_() for t in p.logits],
    )
    masks, log_p = zip(
        *(bernoulli(t) if pattern is None else conditioned(t, pattern) for t in wide.logits), strict=True
    )
    total = torch.zeros((), dtype=torch.float64)
    for first in range(len(masks[0])):  # each mask of the first layer, with all masks of the other layers
        rest = [torch.arange(len(m)) for m in masks[1:]]
        index = torch.cartesian_prod(*rest).view(-1, len(rest)) if rest else torch.zeros(1, 0, dtype=torch.long)
        chosen = [masks[0][first].expand(len(index), -1, -1), *(m[index[:, i]] for i, m in enumerate(masks[1:]))]
        weight = log_p[0][first] + sum(q[index[:, i]] for i, q in enumerate(log_p[1:]))
        y = wide.run(wide.x.expand(len(index), -1, -1), lambda x, i: x @ (chosen[i] * wide.weights[i]).mT)  # noqa: B023
        total = total + (weight.exp() * wide.loss(y)).sum()
    return list(torch.autograd.grad(total, wide.trained))


def bernoulli(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return all masks [2^n, N, K] of a weight with n elements, and their log probabilities [2^n]."""
    masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=logits.numel())), dtype=logits.dtype)
    log_p = masks @ F.logsigmoid(logits).flatten() + (1 - masks) @ F.logsigmoid(-logits).flatten()
    return masks.view(-1, *logits.shape), log_p


def conditioned(logits: Tensor, pattern: str) -> tuple[Tensor, Tensor]:
    """Return all n:m masks [P, N, K] of a weight, and their log probabilities [P]."""
    n, m = patterns.parse(pattern)
    log_p = patterns.log_probabilities(logits.reshape(-1, m), n)  # [groups, P]
    index = torch.cartesian_prod(*[torch.arange(log_p.shape[1])] * len(log_p)).view(-1, len(log_p))
    masks = patterns.kept(n, m, logits)[index].view(-1, *logits.shape)
    return masks, log_p[torch.arange(len(log_p)), index].sum(1)


def differentiated(p: Problem, layer: Callable[[Tensor, int], Tensor], examples_apart: bool = False) -> list[Tensor]:
    """Return the mean gradient over a block of draws.

    Args:
        layer: as for :meth:`Problem.run`.
        examples_apart: give the layer all examples of all draws as one matrix, each with a sample of its own.
    """
    x = p.x.expand(BLOCK, -1, -1)
    y = p.run(x.flatten(0, 1) if examples_apart else x, layer)
    loss = p.loss(y.view(BLOCK, EXAMPLES, -1)).mean()
    return [torch.zeros_like(t) if g is None else g for g, t in _grads(loss, p.trained)]


def _grads(loss: Tensor, inputs: list[Tensor]) -> Iterator[tuple[Tensor | None, Tensor]]:
    return zip(torch.autograd.grad(loss, inputs, allow_unused=True), inputs, strict=True)


def masked(estimator: str, temperature: float = 1.0) -> Callable[[Problem, int], list[Tensor]]:
    """Return a function that computes the gradients of a block of draws under an estimator of masked_linear."""

    def gradient(p: Problem, block: int) -> list[Tensor]:
        at = {"seed": 1, "draw": torch.arange(block * BLOCK, (block + 1) * BLOCK)}
        options = {**at, "estimator": estimator, "temperature": temperature}
        return differentiated(
            p, lambda x, i: functional.masked_linear(x, p.weights[i], p.logits[i], stream=i, **options)
        )

    return gradient


def nm(p: Problem, block: int) -> list[Tensor]:
    """Return the gradients of a block of draws with 2:4 masks."""
    at = {"seed": 1, "draw": torch.arange(block * BLOCK, (block + 1) * BLOCK), "pattern": "2:4"}
    return differentiated(p, lambda x, i: functional.masked_linear_nm(x, p.weights[i], p.logits[i], stream=i, **at))


def local(p: Problem, block: int) -> list[Tensor]:
    """Return the gradients of a block of samples of local reparameterisation."""
    at = {"seed": 1, "draw": block}
    layer = lambda x, i: functional.local_reparameterised_linear(x, p.weights[i], p.logits[i], stream=i, **at)  # noqa: E731
    return differentiated(p, layer, examples_apart=True)


def antithetic(estimator: str) -> Callable[[Problem, int], list[Tensor]]:
    """Return a function that computes the gradients of the logits alone; its block is one draw."""

    def gradient(p: Problem, draw: int) -> list[Tensor]:
        logits = {str(i): t.detach() for i, t in enumerate(p.logits)}
        streams = {str(i): i for i in range(len(p.logits))}

        def loss(masks: dict[str, Tensor]) -> Tensor:
            return p.loss(p.run(p.x, lambda x, i: x @ (masks[str(i)] * p.weights[i]).mT))

        found = functional.antithetic_gradient(loss, logits, seed=1, draw=draw, streams=streams, estimator=estimator)
        return list(found.values())

    return gradient


class Figures(NamedTuple):
    """The errors of an estimator, in units of the exact gradient's norm."""

    bias: float
    noise: float  # the standard error of the bias
    spread: float  # square root of the summed variances of one draw
    cosine: float  # between the mean and the exact gradient


def compare(blocks: Tensor, truth: Tensor, draws_a_block: int) -> Figures:
    """Compare block means [B, n] with the exact gradient [n]."""
    mean, scale = blocks.mean(0), truth.norm()
    noise2 = (blocks.var(0) / len(blocks)).sum()
    bias2 = (mean - truth).square().sum() - noise2  # the noise of the mean increases its distance
    cosine = float(mean @ truth / (mean.norm() * scale).clamp_min(1e-30))
    spread = (blocks.var(0) * draws_a_block).sum().sqrt() / scale
    return Figures(float(bias2.clamp_min(0).sqrt() / scale), float(noise2.sqrt() / scale), float(spread), cosine)


ESTIMATORS: dict[str, tuple[Callable[[Problem, int], list[Tensor]], int]] = {  # gradient, and draws in a block
    "straight_through": (masked("straight_through"), BLOCK),
    "concrete, 1": (masked("concrete", 1.0), BLOCK),
    "concrete, 0.3": (masked("concrete", 0.3), BLOCK),
    "straight_through_concrete, 1": (masked("straight_through_concrete", 1.0), BLOCK),
    "straight_through_concrete, 0.3": (masked("straight_through_concrete", 0.3), BLOCK),
    "hard_concrete, 2/3": (masked("hard_concrete", 2 / 3), BLOCK),
    "expected": (masked("expected"), BLOCK),
    "local reparameterisation": (local, BLOCK),
    "ARM": (antithetic("arm"), 1),
    "DisARM": (antithetic("disarm"), 1),
}
NM = {"N:M 2:4, straight-through": (nm, BLOCK)}
PROBLEMS = [
    ("linear layer, square loss", (10, 1), True, ESTIMATORS),
    ("tanh network, cross-entropy", (3, 3, 2), False, ESTIMATORS),
    ("linear layer, square loss", (12, 1), True, NM),
    ("tanh network, cross-entropy", (4, 4, 2), False, NM),
]


def measure(draws: int) -> list[dict[str, Any]]:
    """Measure every estimator on every network."""
    rows = []
    jobs = [(name, sizes, square, e) for name, sizes, square, found in PROBLEMS for e in found]
    for name, sizes, square, estimator in track(jobs, "estimators"):
        p = problem(f"{name} {sizes}", sizes, square)
        gradient, size = {**ESTIMATORS, **NM}[estimator]
        truth = exact(p, "2:4" if estimator in NM else None)
        blocks = [gradient(p, b) for b in range(draws // size if size > 1 else draws // 5)]
        row: dict[str, Any] = {"problem": name, "estimator": estimator}
        parts = {"logits": slice(0, len(p.logits)), "weights": slice(len(p.logits), None)}
        for part, which in parts.items():
            found = [torch.cat([g.flatten().double() for g in block[which]]) for block in blocks if block[which]]
            if found:
                target = torch.cat([g.flatten() for g in truth[which]])
                row[part] = compare(torch.stack(found), target, size)._asdict()
        rows.append(row)
    return rows


def percent(figures: dict[str, float] | None) -> list[str]:
    """Return bias, spread and cosine as cells of a table; empty cells without figures."""
    if figures is None:
        return ["", "", ""]
    bias, noise = 100 * figures["bias"], 100 * figures["noise"]
    shown = f"{bias:.0f} ± {noise:.1g}" if bias > 2 * noise else f"within {2 * noise:.2g}"
    return [shown if noise > 0.005 else f"{bias:.0f}", f"{100 * figures['spread']:.0f}", f"{figures['cosine']:.3f}"]


def tables(rows: list[dict[str, Any]]) -> list[str]:
    """Return a heading and a table for each network."""
    sections = []
    head = ["estimator", "logits: bias", "spread", "cosine", "weights: bias", "spread", "cosine"]
    for name in dict.fromkeys(row["problem"] for row in rows):
        lines = [
            [row["estimator"], *percent(row["logits"]), *percent(row.get("weights"))]
            for row in rows
            if row["problem"] == name
        ]
        sections += [f"### {name[0].upper()}{name[1:]}", table(head, lines)]
    return sections
