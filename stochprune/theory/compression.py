"""Magnitude-based compression of a network, and its cost (after Guha et al. 2023, arXiv 2305.18789).

A network is given as its weights by name, float tensors [out, in] in the order of the layers, with ReLU between them
and no biases. An entry A_ij of a layer is kept with probability ``1 - exp(-A_ij^2 / (d V))``, where V is the variance
of the layer's weights and d is one scale for all layers. This is a stochastic mask of the mask contract. We know the
paper from its abstract and the authors' code; this module is our reading of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stochprune import bounds, rng
from stochprune.functional import keep_mask

Weights = Mapping[str, Tensor]


def outputs(weights: Weights, x: Tensor, batch_size: int = 4096) -> Tensor:
    """Logits [n, classes] of examples x [n, ...], which are flattened."""
    layers = list(weights.values())

    def run(part: Tensor) -> Tensor:
        for i, weight in enumerate(layers):
            part = (part.relu() if i else part.flatten(1).to(weight.dtype)) @ weight.mT
        return part

    return torch.cat([run(part) for part in x.split(batch_size)])


def keep_thresholds(weight: Tensor, scale: float) -> Tensor:
    """Return uint16 [out, in]: the keep probabilities ``1 - exp(-A^2 / (scale V))`` rounded to units of 1/32768."""
    if not scale > 0:
        raise ValueError(f"the scale d must be positive, got {scale}")
    wide = weight.double()
    keep = -torch.expm1(-wide.square() / (scale * wide.var(correction=0)))
    return torch.round(keep * rng.LEVELS).to(torch.int32).to(torch.uint16)


def compress(weights: Weights, scale: float, *, seed: int, draw: int = 0) -> dict[str, Tensor]:
    """The weights under one mask of the compression; pruned ones are 0."""
    streams = rng.streams(weights)
    return {
        name: w * keep_mask(keep_thresholds(w, scale), seed=seed, draw=draw, stream=streams[name])
        for name, w in weights.items()
    }


def predicted_kept(scale: float) -> float:
    """chi(d) = 1 - sqrt(d / (d + 2)), the fraction of Gaussian weights that is kept on average."""
    return 1 - math.sqrt(scale / (scale + 2))


def kept(weights: Weights) -> float:
    """The fraction of weights that are not 0."""
    return sum(int(w.count_nonzero()) for w in weights.values()) / sum(w.numel() for w in weights.values())


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """Return [n]: the output of the label minus the largest other output; negative if the prediction is wrong."""
    of_label = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], -math.inf).amax(1)
    return of_label[:, 0] - others


def output_change(norms: Sequence[float], changes: Sequence[float], radius: float) -> float:
    """Return an upper bound on |f(x) - f'(x)| over |x| <= radius for layers of spectral norms a that change by c.

    The bound is ``radius (prod_l (a_l + c_l) - prod_l a_l)``: replace one layer after the other; ReLU is 1-Lipschitz
    and maps 0 to 0. It holds for changes of any size, and is proved if ``norms`` and ``changes`` are upper bounds.
    """
    before, change = 1.0, 0.0
    for norm, by in zip(norms, changes, strict=True):
        change = change * (norm + by) + before * by
        before *= norm
    return radius * change * (1 + 1e-12)  # for the rounding of these few operations


def contractions(shapes: Sequence[tuple[int, int]], examples: int) -> list[float]:
    """Return Gamma_l of each layer [out, in]: 1 if out >= in, else min(1, t sqrt(out)) with t = sqrt(ln(100 n) / in).

    This assumes that a layer which reduces the dimension shrinks its input like a random projection, with probability
    0.99 over n inputs. Nothing here checks this assumption on the weights.
    """
    spread = [math.sqrt(math.log(100 * examples) / inputs) for _, inputs in shapes]
    return [
        1.0 if out >= inputs else min(1.0, t * math.sqrt(out)) for (out, inputs), t in zip(shapes, spread, strict=True)
    ]


def paper_margin(
    norms: Sequence[float], changes: Sequence[float], radius: float, contractions: Sequence[float]
) -> float:
    """Return gamma = e radius [prod_l Gamma_l a_l] sum_l c_l / a_l: the margin that the paper needs.

    It assumes c_l <= a_l / (number of layers), as in lemma 2 of Neyshabur, Bhojanapalli and Srebro 2018 (arXiv
    1707.09564). With larger changes it is not a bound; :func:`output_change` is.
    """
    product = math.prod(g * a for g, a in zip(contractions, norms, strict=True))
    return math.e * radius * product * sum(c / a for c, a in zip(changes, norms, strict=True))


def paper_complexity(shapes: Sequence[tuple[int, int]], fraction: float, examples: int) -> float:
    """Return sqrt(sum_l out_l in_l fraction ln^2 max(out_l, in_l) / n), which the bound adds to the margin loss."""
    total = sum(out * inputs * fraction * math.log(max(out, inputs)) ** 2 for out, inputs in shapes)
    return math.sqrt(total / examples)


def code_length(weights: Weights, levels: int) -> float:
    """Return the length in nats of a code for a sparse network whose non-zero weights have ``levels`` values per layer.

    The number k of non-zeros of N weights takes ln(N + 1), their positions ln C(N, k), their values k ln levels, and
    the range of the levels two numbers of 32 bits per layer.
    """
    total = sum(w.numel() for w in weights.values())
    count = sum(int(w.count_nonzero()) for w in weights.values())
    which = math.lgamma(total + 1) - math.lgamma(count + 1) - math.lgamma(total - count + 1)
    return math.log(total + 1) + which + count * math.log(levels) + 64 * math.log(2) * len(weights)


def scaling_length(x: Tensor) -> float:
    """Return the nats of what scales inputs x [n, ...]: shift and scale of each channel, float64.

    :func:`stochprune.data.splits.split` learns them from the examples on which the network is trained, so they are a
    part of the network that a code must write.
    """
    channels = x.shape[1] if x.dim() == 4 else 1
    return 2 * 64 * math.log(2) * channels


def quantise(weights: Weights, levels: int) -> dict[str, Tensor]:
    """Round non-zero weights to the middles of ``levels`` equal parts of their layer's range; zeros stay 0.

    With an even number of levels a level is usually not 0. A level that is 0 counts as pruned.
    """
    if levels < 1:
        raise ValueError(f"levels must be at least 1, got {levels}")
    found = {}
    for name, w in weights.items():
        values = w[w != 0]
        if not len(values):
            found[name] = w.clone()
            continue
        low, step = values.min(), (values.max() - values.min()) / levels
        part = torch.zeros_like(w) if not step > 0 else ((w - low) / step).floor().clamp(0, levels - 1)
        found[name] = torch.where(w != 0, low + (part + 0.5) * step, 0)
    return found


def counting_bound(error: float, nats: float, examples: int, delta: float) -> float:
    """Return R <= kl^-1(error | (nats + ln(1/delta)) / n), the Occam bound of a network whose code has this length.

    The bound is complete. With probability 1 - delta over the n training examples it holds for every network that the
    code can write, however it was found (Blumer et al. 1987; Langford 2005, "Tutorial on practical prediction theory
    for classification"). The code must not depend on the examples.
    """
    return bounds.kl_inverse(error, (nats + math.log(1 / delta)) / examples)
