"""Ways to write a linear layer that keeps n of every m neighbouring weights.

Each is a function of n and m that returns ``make(weight, logits, bias) -> forward(x)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stochprune import functional, patterns
from stochprune.extras import extra

from .layer import STREAM, Forward, Make, counter
from .linear_ways import compile_fresh, dense


def ours(n: int, m: int) -> Make:
    """Return a layer that calls stochprune.functional.masked_linear_nm."""

    def make(weight: Tensor, logits: Tensor, bias: Tensor) -> Forward:
        (seed, draws), pattern = counter(weight.device), f"{n}:{m}"

        def forward(x: Tensor) -> Tensor:
            at: dict[str, Any] = {"seed": seed, "draw": draws(), "stream": STREAM}
            return functional.masked_linear_nm(x, weight, logits, bias, pattern=pattern, **at)

        return forward

    return make


def eager(n: int, m: int) -> Make:
    """Return the layer in plain PyTorch: a softmax over the patterns, and straight-through inclusion probabilities."""

    def make(weight: Tensor, logits: Tensor, bias: Tensor) -> Forward:
        table = patterns.kept(n, m, weight)

        def forward(x: Tensor) -> Tensor:
            p = torch.softmax(patterns.groups(logits, m).float() @ table.float().mT, -1)
            chosen = (p.detach() / torch.empty_like(p).exponential_()).argmax(-1)  # one race for each group
            inclusion = (p @ table.float()).flatten(1).to(weight.dtype)
            mask = table[chosen].flatten(1)
            return F.linear(x, weight * (mask - inclusion.detach() + inclusion), bias)

        return forward

    return make


def compiled(n: int, m: int) -> Make:
    """Return the eager layer under ``torch.compile``."""

    make = eager(n, m)
    return lambda weight, logits, bias: compile_fresh(make(weight, logits, bias))


def maskllm(n: int, m: int) -> Make:
    """Return MaskLLM's layer: Gumbel softmax over the patterns, hard in the forward pass (Fang et al. 2024).

    Its logits [N, K / m, patterns] are those of the patterns; scale and temperature are 1.
    """

    def make(weight: Tensor, logits: Tensor, bias: Tensor) -> Forward:
        table = patterns.kept(n, m, weight)

        def forward(x: Tensor) -> Tensor:
            return F.linear(x, weight * gumbel_mask(logits, table), bias)

        return forward

    return make


def gumbel_mask(logits: Tensor, table: Tensor) -> Tensor:
    """Return MaskLLM's mask [N, K]; logits [N, K / m, patterns], table [patterns, m]."""
    return (F.gumbel_softmax(logits, hard=True) @ table).flatten(1)


class _WithScore(torch.autograd.Function):
    """Returns y, and gives a score the gradient 1 besides."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, score: Tensor) -> Tensor:
        ctx.save_for_backward(torch.ones_like(score))
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, ctx.saved_tensors[0]


def maskpro(n: int, m: int) -> Make:
    """Return the sampling of MaskPro: n weights of a group in turn without replacement (Sun et al. 2025).

    The gradient of the logits is that of the log-probability of the choices, which MaskPro multiplies by a reward. Its
    training needs no other gradients; here x and the weight get theirs, as for the other contenders.
    """

    def make(weight: Tensor, logits: Tensor, bias: Tensor) -> Forward:
        def forward(x: Tensor) -> Tensor:
            wide = patterns.groups(logits, m).float()
            race = (
                torch.empty_like(wide).exponential_().log_().neg_() + wide.detach()
            )  # Gumbel; the first n win in turn
            chosen = race.topk(n, dim=-1).indices
            score, left = wide.new_zeros(()), wide
            for k in range(n):
                one = chosen[..., k : k + 1]
                score = score + torch.log_softmax(left, -1).gather(-1, one).sum()
                left = left.scatter(-1, one, -torch.inf)
            mask = torch.zeros_like(wide, dtype=weight.dtype).scatter_(-1, chosen, 1).flatten(1)
            y: Tensor = _WithScore.apply(F.linear(x, weight * mask, bias), score)
            return y

        return forward

    return make


def torchao(n: int, m: int) -> Make:
    """Return torchao's layer for training with 2:4 weights, which keeps the largest weights.

    Raises:
        MissingExtraError: torchao is not installed.
    """
    with extra("lowbit", "this contender"):
        from torchao.sparsity.training.autograd import semi_structured_sparsify

    def make(weight: Tensor, logits: Tensor, bias: Tensor) -> Forward:
        return lambda x: F.linear(x, semi_structured_sparsify(weight, backend="cutlass"), bias)

    return make


CONTENDERS: dict[str, Callable[[int, int], Make]] = {
    "dense": lambda n, m: dense,
    "ours": ours,
    "eager": eager,
    "compile": compiled,
    "MaskLLM": maskllm,
    "MaskPro": maskpro,
    "torchao": torchao,
}
