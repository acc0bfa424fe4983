"""A linear layer that keeps n of every m neighbouring weights: ours, and other ways to choose a group's pattern."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from stochprune import patterns
from stochprune.address import Mask

from .. import laws
from ..case import Absent, Case, Way
from ..laws import Pass
from . import linear_nm_ways
from .layer import STREAM, LayerOp, Make, Within, choice, counter

MASKLLM, MASKPRO, TORCHAO = "MaskLLM", "MaskPro", "torchao"


class LinearNM(LayerOp):
    """``x (m * weight)^T + bias``; shape: rows, cols, tokens, n, m.

    The laws of a group's pattern: ``conditional`` is that of independent Bernoulli masks of which n keep;
    ``categorical`` has a logit for each pattern; ``without replacement`` chooses n times among those weights that are
    left; ``magnitude`` keeps the largest weights of the present, and no mask is trained.
    """

    laws: Mapping[str, str] = {
        "dense": "none",
        "ours": "conditional",
        "eager": "conditional",
        "compile": "conditional",
        MASKLLM: "categorical",
        MASKPRO: "without replacement",
        TORCHAO: "magnitude",
    }

    def shapes(self, contender: str, case: Case) -> dict[str, tuple[int, ...]]:
        """Return the shapes; the law ``categorical`` has a logit for each pattern of a group."""
        shapes = super().shapes(contender, case)
        if self.laws[contender] == "categorical":
            n, m = _pattern(case)
            count = len(patterns.kept(n, m, torch.empty(0)))
            shapes["parameter"] = (case.shape["rows"], case.shape["cols"] // m, count)
        return shapes

    def shown(self, case: Case) -> tuple[Case, Tensor] | None:
        """Return the case of a part of the layer, and its columns, which are whole groups."""
        cols, tokens, m = (case.shape[name] for name in ("cols", "tokens", "m"))
        if tokens < m:
            return None
        chosen = choice(cols // m, tokens // 2 // m)
        columns = (chosen.unsqueeze(1) * m + torch.arange(m)).flatten()
        shape = {**case.shape, "cols": len(columns), "tokens": tokens - len(columns)}
        return dataclasses.replace(case, shape=shape), columns

    def narrowed(self, case: Case, tensor: Tensor, columns: Tensor) -> Tensor:
        """Return these columns of a weight or of logits, which may be those of patterns [N, K / m, patterns]."""
        m = case.shape["m"]
        return super().narrowed(case, tensor, columns if tensor.dim() == 2 else columns[::m] // m)

    def made(self, contender: str, case: Case, like: Tensor) -> tuple[Make, Within]:
        """Return the function that makes a contender, and no context."""
        n, m = _pattern(case)
        if contender == TORCHAO and ((n, m) != (2, 4) or like.dtype == torch.float32 or not _has_sparse_products(like)):
            raise Absent("torchao's products of 2:4 weights need 16 bits and a GPU of compute capability 8.0 or higher")
        return linear_nm_ways.CONTENDERS[contender](n, m), contextlib.nullcontext

    def wrong(self, contender: str, case: Case, way: Way, one: Pass, other: Pass) -> str | None:
        """Compare with the law of the contender."""
        weight, logits = (way.tensors[name].detach() for name in ("weight", "logits"))
        n, m = _pattern(case)
        law = self.laws[contender]
        if law == "none":
            return laws.fixed(weight, one)
        if law == "magnitude":
            return laws.largest(weight, (n, m), one)
        if law == "categorical":
            shares = torch.softmax(logits.double(), -1)
            found = (shares @ patterns.kept(n, m, shares)).flatten(1)
            return laws.inclusion(weight, (n, m), found, None, one, other)
        if law == "without replacement":
            found = without_replacement(patterns.groups(logits.double(), m), n).flatten(1)
            return laws.inclusion(weight, (n, m), found, None, one, other) or _score(logits, (n, m), one)
        found = patterns.inclusion(logits.double(), n, m)
        return laws.inclusion(weight, (n, m), found, _through(logits, n, m), one, other)

    def contract(self, case: Case, logits: Tensor) -> Tensor:
        """Return the mask of the first pass by the slow text of the contract, bool."""
        seed, draws = counter(logits.device)
        return patterns.mask(logits.detach(), _pattern(case), Mask(seed, draws(), STREAM)) != 0

    def known(self, case: Case, weight: Tensor, logits: Tensor, keep: Tensor, found: Pass) -> str | None:
        """Return what is wrong with a pass whose mask is ``keep``, or None."""
        return laws.grouped(weight, keep, _through(logits, *_pattern(case)), found)


def without_replacement(logits: Tensor, n: int) -> Tensor:
    """Return the probability that each of m is among n that are chosen in turn, each by its share of what is left.

    Args:
        logits: [..., m]; the shares are their softmax.
    """
    p = torch.softmax(logits, -1)
    found = torch.zeros_like(p)
    for order in itertools.permutations(range(p.shape[-1]), n):
        left, probability = torch.ones_like(p[..., 0]), torch.ones_like(p[..., 0])
        for i in order:
            probability, left = probability * p[..., i] / left, left - p[..., i]
        for i in order:
            found[..., i] += probability
    return found


def _score(logits: Tensor, pattern: tuple[int, int], found: Pass) -> str | None:
    """Return what is wrong with the gradient of the log-probability of the choices, or None; their order is unknown."""
    n, m = pattern
    wide = patterns.groups(logits.double(), m)
    given = patterns.groups(found.grads["logits"].double(), m)
    kept = patterns.groups(found.sampled != 0, m).nonzero()[:, -1].view(*wide.shape[:-1], n)
    errors = []
    for order in itertools.permutations(range(n)):
        left, expected = torch.zeros_like(wide), torch.zeros_like(wide)
        for k in order:
            chosen = torch.nn.functional.one_hot(kept[..., k], m)
            expected += chosen - torch.softmax(wide + left, -1)
            left = left.masked_fill(chosen.bool(), -torch.inf)
        errors.append((given - expected).abs().amax(-1))
    error = torch.stack(errors).amin(0).max().item()
    return None if error <= laws.TOLERANCE[found.dtype] else f"gradient of logits is off by {error:.1e}"


def _through(logits: Tensor, n: int, m: int) -> laws.Through:
    return lambda grad: patterns.inclusion_grad(grad, logits.double(), n, m)


def _pattern(case: Case) -> tuple[int, int]:
    return case.shape["n"], case.shape["m"]


def _has_sparse_products(like: Tensor) -> bool:
    return like.is_cuda and torch.cuda.get_device_capability(like.device) >= (8, 0)
