"""Bias, variance and time of every gradient estimator, written to docs/estimators.md.

    python -m bench.estimators              # about five minutes on one core
    python -m bench.estimators --draws 2000 # a quick look; writes nothing

On small networks the expected loss is a finite sum over all hard masks, so its exact gradient is known. The mean of
each estimator over many draws is compared with it, and the spread over draws is measured. Then the time of a training
step on a layer of a usual size is measured. Finally posteriors are learnt on the digits under two estimators, and
certified.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

import stochprune
from bench.report import table
from stochprune import data, functional, models, patterns
from stochprune.data.splits import Part, split
from stochprune.pac_bayes import (
    CertifyConfig,
    Posterior,
    PriorConfig,
    SelfBoundConfig,
    certify,
    make_posterior,
    self_bound,
    train_prior,
)
from stochprune.pac_bayes.objective import Objective
from stochprune.runs.results import versions
from stochprune.seeding import generator

ROOT = Path(__file__).parent.parent
PAGE, HEADING = ROOT / "docs" / "estimators.md", "## Measured"
RESULT = ROOT / "bench" / "results" / "estimators.json"
BLOCK = 100  # draws whose gradients are taken together; variances come from the means of blocks
EXAMPLES = 16


class Problem(NamedTuple):
    """A network without biases, tanh between its layers, on a few examples."""

    name: str
    x: Tensor  # [M, K]
    target: Tensor  # [M, 1] for the square loss, [M] classes for the cross-entropy
    weights: list[Tensor]
    logits: list[Tensor]

    def loss(self, y: Tensor) -> Tensor:
        """[...] of outputs [..., M, N]."""
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
    """The gradient of the expected loss over all hard masks, float64, for ``p.trained``."""
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
    for first in range(len(masks[0])):  # every combination with the masks of the other layers, if any
        rest = [torch.arange(len(m)) for m in masks[1:]]
        index = torch.cartesian_prod(*rest).view(-1, len(rest)) if rest else torch.zeros(1, 0, dtype=torch.long)
        chosen = [masks[0][first].expand(len(index), -1, -1), *(m[index[:, i]] for i, m in enumerate(masks[1:]))]
        weight = log_p[0][first] + sum(q[index[:, i]] for i, q in enumerate(log_p[1:]))
        y = wide.run(wide.x.expand(len(index), -1, -1), lambda x, i: x @ (chosen[i] * wide.weights[i]).mT)  # noqa: B023
        total = total + (weight.exp() * wide.loss(y)).sum()
    return list(torch.autograd.grad(total, wide.trained))


def bernoulli(logits: Tensor) -> tuple[Tensor, Tensor]:
    """All masks [2^n, N, K] of a weight and their log probabilities."""
    masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=logits.numel())), dtype=logits.dtype)
    log_p = masks @ F.logsigmoid(logits).flatten() + (1 - masks) @ F.logsigmoid(-logits).flatten()
    return masks.view(-1, *logits.shape), log_p


def conditioned(logits: Tensor, pattern: str) -> tuple[Tensor, Tensor]:
    """The same for an n:m mask."""
    n, m = patterns.parse(pattern)
    log_p = patterns.log_probabilities(logits.reshape(-1, m), n)  # [groups, P]
    index = torch.cartesian_prod(*[torch.arange(log_p.shape[1])] * len(log_p)).view(-1, len(log_p))
    masks = patterns.kept(n, m, logits)[index].view(-1, *logits.shape)
    return masks, log_p[torch.arange(len(log_p)), index].sum(1)


def differentiated(p: Problem, layer: Callable[[Tensor, int], Tensor], examples_apart: bool = False) -> list[Tensor]:
    """The mean gradient over a block of draws."""
    x = p.x.expand(BLOCK, -1, -1)
    y = p.run(x.flatten(0, 1) if examples_apart else x, layer)
    loss = p.loss(y.view(BLOCK, EXAMPLES, -1)).mean()
    return [torch.zeros_like(t) if g is None else g for g, t in _grads(loss, p.trained)]


def _grads(loss: Tensor, inputs: list[Tensor]) -> Iterator[tuple[Tensor | None, Tensor]]:
    return zip(torch.autograd.grad(loss, inputs, allow_unused=True), inputs, strict=True)


def masked(estimator: str, temperature: float = 1.0) -> Callable[[Problem, int], list[Tensor]]:
    def gradient(p: Problem, block: int) -> list[Tensor]:
        at = {"seed": 1, "draw": torch.arange(block * BLOCK, (block + 1) * BLOCK)}
        options = {**at, "estimator": estimator, "temperature": temperature}
        return differentiated(
            p, lambda x, i: functional.masked_linear(x, p.weights[i], p.logits[i], stream=i, **options)
        )

    return gradient


def nm(p: Problem, block: int) -> list[Tensor]:
    at = {"seed": 1, "draw": torch.arange(block * BLOCK, (block + 1) * BLOCK), "pattern": "2:4"}
    return differentiated(p, lambda x, i: functional.masked_linear_nm(x, p.weights[i], p.logits[i], stream=i, **at))


def local(p: Problem, block: int) -> list[Tensor]:
    at = {"seed": 1, "draw": block}
    layer = lambda x, i: functional.local_reparameterised_linear(x, p.weights[i], p.logits[i], stream=i, **at)  # noqa: E731
    return differentiated(p, layer, examples_apart=True)


def antithetic(estimator: str) -> Callable[[Problem, int], list[Tensor]]:
    """Return gradients of the logits only; a block is one draw."""

    def gradient(p: Problem, draw: int) -> list[Tensor]:
        logits = {str(i): t.detach() for i, t in enumerate(p.logits)}
        streams = {str(i): i for i in range(len(p.logits))}

        def loss(masks: dict[str, Tensor]) -> Tensor:
            return p.loss(p.run(p.x, lambda x, i: x @ (masks[str(i)] * p.weights[i]).mT))

        found = functional.antithetic_gradient(loss, logits, seed=1, draw=draw, streams=streams, estimator=estimator)
        return list(found.values())

    return gradient


class Figures(NamedTuple):
    """In units of the exact gradient's norm."""

    bias: float
    noise: float  # the standard error of the bias
    spread: float  # root of the summed variances of one draw
    cosine: float  # between the mean and the exact gradient


def compare(blocks: Tensor, truth: Tensor, draws_a_block: int) -> Figures:
    """Compare block means [B, n] with the exact gradient [n]."""
    mean, scale = blocks.mean(0), truth.norm()
    noise2 = (blocks.var(0) / len(blocks)).sum()
    bias2 = (mean - truth).square().sum() - noise2  # the noise of the mean adds to its distance
    cosine = float(mean @ truth / (mean.norm() * scale).clamp_min(1e-30))
    spread = (blocks.var(0) * draws_a_block).sum().sqrt() / scale
    return Figures(float(bias2.clamp_min(0).sqrt() / scale), float(noise2.sqrt() / scale), float(spread), cosine)


ESTIMATORS: dict[str, tuple[Callable[[Problem, int], list[Tensor]], int]] = {
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


WIDTH, BATCH, ROUNDS = 1024, 128, 9


def steps() -> dict[str, Callable[[int], object]]:
    """One forward and backward pass of a layer under each estimator; the argument is the draw."""
    numbers = generator(0, "estimators", "time")
    make = lambda *shape: torch.from_numpy(numbers.normal(size=shape)).float()  # noqa: E731
    x, grad, weight = (
        make(BATCH, WIDTH).requires_grad_(),
        make(BATCH, WIDTH),
        (make(WIDTH, WIDTH) / 32).requires_grad_(),
    )
    logits, rho = make(WIDTH, WIDTH).requires_grad_(), (make(WIDTH, WIDTH) - 5).requires_grad_()
    rows = make(WIDTH, 1).requires_grad_()

    def step(layer: Callable[[int], Tensor], *trained: Tensor) -> Callable[[int], object]:
        return lambda draw: torch.autograd.grad(layer(draw), (x, *trained), grad)

    at = lambda draw: {"seed": 1, "draw": draw, "stream": 3}  # noqa: E731
    out = {"dense": step(lambda d: F.linear(x, weight), weight)}
    for estimator in ("straight_through", "concrete", "straight_through_concrete", "hard_concrete", "expected"):
        layer = lambda d, e=estimator: functional.masked_linear(x, weight, logits, **at(d), estimator=e)  # noqa: E731
        out[estimator] = step(layer, weight, logits)
    out["N:M 2:4, straight-through"] = step(
        lambda d: functional.masked_linear_nm(x, weight, logits, pattern="2:4", **at(d)), weight, logits
    )
    out["rows"] = step(lambda d: functional.masked_linear_blocks(x, weight, rows, **at(d)), weight, rows)
    out["Gaussian weights"] = step(lambda d: functional.spike_and_slab_linear(x, weight, rho, **at(d)), weight, rho)
    out["spike and slab"] = step(
        lambda d: functional.spike_and_slab_linear(x, weight, rho, logits, **at(d)), weight, rho, logits
    )
    out["local reparameterisation"] = step(
        lambda d: functional.local_reparameterised_linear(x, weight, logits, **at(d)), weight, logits
    )
    out["DisARM"] = lambda d: functional.antithetic_gradient(
        lambda masks: (F.linear(x, weight * masks["w"]) * grad).sum(),
        {"w": logits.detach()},
        seed=1,
        draw=d,
        streams={"w": 3},
    )
    return out


def time_steps() -> dict[str, float]:
    """Milliseconds by name: medians of rounds in which the contenders take turns."""
    runs, times = steps(), {}
    for round in track(range(-1, ROUNDS), "time"):
        for name, run in runs.items():
            start = time.perf_counter()
            run(round + 1)
            if round >= 0:  # the first warms up
                times.setdefault(name, []).append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


FAMILIES = ("masks", "gaussian")
LEARNERS = [("straight_through", 10), ("straight_through", 16), ("local_reparameterisation", 10)]  # and epochs
RATES, SEEDS, GRADIENTS = (0.1, 0.5), range(5), 200
PRIOR = PriorConfig(prior_epochs=6, keep=0.8, sigma=0.05)


def noise(posterior: Posterior, part: Part) -> tuple[Tensor, float, float]:
    """Measure the objective's gradient for one batch, in the metric of the KL, in which steps are taken.

    Returns its mean, the norm of the mean without the contribution of the noise, and the root of its summed variances.
    """
    config = SelfBoundConfig()
    objective = Objective(posterior, len(part), CertifyConfig.delta, config)
    x, y = part.x[: config.batch_size], part.y[: config.batch_size]
    tensors, curvatures = zip(*posterior.curvatures(), strict=True)
    total, squares = torch.zeros(()), 0.0
    for _ in range(GRADIENTS):
        grads = torch.autograd.grad(objective.loss(objective(x), y), tensors)
        g = torch.cat([(g / c.sqrt()).flatten().double() for g, c in zip(grads, curvatures, strict=True)])
        total, squares = total + g, squares + float(g @ g)
    mean = total / GRADIENTS
    variance = (squares - GRADIENTS * float(mean @ mean)) / (GRADIENTS - 1)
    return mean, math.sqrt(max(0.0, float(mean @ mean) - variance / GRADIENTS)), math.sqrt(variance)


def learn() -> list[dict[str, Any]]:
    """Learn under straight_through and local reparameterisation, from one prior per family."""
    digits = data.load("digits", None)
    parts = split(digits.train_x, digits.train_y, 0.5, 0)
    prior = train_prior(models.build("lenet_300_100", digits.shape, digits.num_classes, 0), parts.prior, PRIOR)
    certificate = lambda posterior: certify(posterior, parts.certify, CertifyConfig(draws=2000)).bound  # noqa: E731
    rows = []
    for family in track(FAMILIES, "learning"):
        control, means = certificate(make_posterior(prior, family)), []
        for start, (estimator, epochs) in enumerate(LEARNERS):
            posterior = make_posterior(prior, family)
            posterior.at(1, start * GRADIENTS)
            posterior.estimate_by(estimator)
            mean, norm, spread = noise(posterior, parts.certify)
            means.append(mean / norm)
            row = {"family": family, "estimator": estimator, "epochs": epochs, "prior": control}
            row |= {"spread": spread / norm, "cosine": min(1.0, float(means[0] @ means[-1]))}
            row |= {"certificates": {}, "kl": {}, "seconds": []}
            for rate in RATES:
                config, found = SelfBoundConfig(estimator=estimator, lr=rate, epochs=epochs), []
                for seed in SEEDS:
                    begin = time.process_time()
                    found.append(self_bound(prior, parts.certify, config, family=family, seed=seed))
                    row["seconds"].append(time.process_time() - begin)
                row["kl"][str(rate)] = [result.history[-1]["kl"] for result in found]
                row["certificates"][str(rate)] = [certificate(result.posterior) for result in found]
            rows.append(row)
    return rows


def percent(figures: dict[str, float] | None) -> list[str]:
    if figures is None:
        return ["", "", ""]
    bias, noise = 100 * figures["bias"], 100 * figures["noise"]
    shown = f"{bias:.0f} ± {noise:.1g}" if bias > 2 * noise else f"within {2 * noise:.2g}"
    return [shown if noise > 0.005 else f"{bias:.0f}", f"{100 * figures['spread']:.0f}", f"{figures['cosine']:.3f}"]


def report(rows: list[dict[str, Any]], times: dict[str, float], learnt: list[dict[str, Any]], draws: int) -> str:
    """The measured part of the page."""
    about = (
        f"{draws} draws ({draws // 5} of ARM and DisARM); torch {torch.__version__}, "
        f"stochprune {stochprune.__version__}. "
        "Bias (± its standard error) and spread of one draw are in per cent of the exact gradient's norm; "
        "cosine is that of the mean with the exact gradient. The number is the temperature."
    )
    sections = [about]
    head = ["estimator", "logits: bias", "spread", "cosine", "weights: bias", "spread", "cosine"]
    for name in dict.fromkeys(row["problem"] for row in rows):
        lines = [
            [row["estimator"], *percent(row["logits"]), *percent(row.get("weights"))]
            for row in rows
            if row["problem"] == name
        ]
        sections += [f"### {name[0].upper()}{name[1:]}", table(head, lines)]
    dense = times["dense"]
    lines = [[name, f"{ms:.1f}", f"{ms / dense:.2f}"] for name, ms in times.items()]
    sections += [
        "### Time of a step",
        f"Forward and backward of a {WIDTH} x {WIDTH} layer, batch {BATCH}, float32, "
        f"{torch.get_num_threads()} threads; medians of {ROUNDS} rounds in turns. DisARM: two products, no backward.",
        table(["estimator", "ms", "times dense"], lines),
    ]
    sections += ["### Self-bounded learning", *learning(learnt)]
    return "\n\n".join(sections)


def learning(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Return the description of the self-bounded learning and its table."""
    about = (
        f"LeNet-300-100 on the digits, 719 of which certify. The prior has {PRIOR.prior_epochs} epochs behind it, and "
        f"keeps with probability {PRIOR.keep:g} or has the deviation {PRIOR.sigma:g}. Spread of one draw of the "
        f"objective's gradient at the prior, for one batch of {SelfBoundConfig.batch_size}, in per cent of the norm of "
        f"its mean over {GRADIENTS} draws, in the metric of the divergence, in which the steps are taken; cosine "
        "with the mean of the first row's draws. Certificates (2000 draws, the same for all): the prior's own, and by "
        f"rate the mean ± the deviation over {len(SEEDS)} seeds of the learning; their KL in nats. CPU seconds of the "
        "learning."
    )
    shown = lambda values: f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"  # noqa: E731
    rates = [title for rate in RATES for title in (f"rate {rate}", "KL")]
    lines = []
    for row in rows:
        line = [row["family"], row["estimator"], str(row["epochs"]), f"{statistics.median(row['seconds']):.2f}"]
        line += [f"{100 * row['spread']:.0f}", f"{row['cosine']:.2f}", f"{row['prior']:.4f}"]
        for rate, found in row["certificates"].items():
            line += [shown(found), f"{statistics.mean(row['kl'][rate]):.2f}"]
        lines.append(line)
    return about, table(["posterior", "estimator", "epochs", "seconds", "spread", "cosine", "prior's", *rates], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, help="masks drawn for each estimator; given, nothing is written")
    draws = parser.parse_args().draws
    count = draws or 20_000
    rows, times, learnt = measure(count), time_steps(), learn()
    text = report(rows, times, learnt, count)
    print(text)
    if draws is None:
        kept = {"versions": versions(), "seed": 0, "draws": count, "rows": rows, "ms": times, "learnt": learnt}
        RESULT.write_text(json.dumps(kept, indent=1) + "\n")
        PAGE.write_text(f"{PAGE.read_text().partition(HEADING)[0]}{HEADING}\n\n{text}\n")


if __name__ == "__main__":
    main()
