"""A masked linear layer and the dense one over decades of sizes: weights, batch and draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from stochprune import functional

from .. import laws
from ..case import DTYPES, Case, Verdict, Way, Work
from .layer import SEED, STREAM, Counter, contract_mask, product_work, random

CHECKED = 4
"""Draws of the check: the closed form keeps a mask for each."""


class LinearScaled:
    """A step with D draws for one x, or of a dense layer with D times the examples; shape: rows, cols, tokens, draws.

    It has no other contenders, so that three decades take minutes.
    """

    baseline = "dense"
    laws: Mapping[str, str] = {"dense": "none", "ours": "bernoulli"}

    def make(self, contender: str, case: Case, device: torch.device) -> Way:
        """Return a contender at the case's shape."""
        rows, cols, tokens, draws = (case.shape[name] for name in ("rows", "cols", "tokens", "draws"))
        dense = contender == "dense"
        many = (draws * tokens, cols), (draws * tokens, rows)
        few = (tokens, cols), (draws, tokens, rows)
        weight, logits, x, grad = random(0, case, device, (rows, cols), (rows, cols), *(many if dense else few))
        tensors = {"x": x.requires_grad_(), "weight": weight.requires_grad_()}
        if dense:
            return Way(lambda: F.linear(x, weight), tensors, grad, weight.numel())
        first = Counter(torch.zeros(1, dtype=torch.int64, device=device), draws)

        def forward() -> Tensor:
            return functional.masked_linear(x, weight, logits, seed=SEED, draw=first(), stream=STREAM, samples=draws)

        return Way(forward, {**tensors, "logits": logits.requires_grad_()}, grad, weight.numel())

    def check(self, contender: str, case: Case, device: torch.device) -> Verdict:
        """Compare outputs and gradients of the first draws, and the output of the last one, with the contract."""
        few = dataclasses.replace(case, shape={**case.shape, "draws": min(CHECKED, case.shape["draws"])})
        way = self.make(contender, few, device)
        y = way.forward()
        found = {"output": y.detach(), **way.backward(y)}
        wide = {name: tensor.detach().double().requires_grad_() for name, tensor in way.tensors.items()}
        assert way.grad is not None
        if contender == "dense":
            expected = F.linear(wide["x"], wide["weight"])
        else:
            expected = torch.stack([_masked(wide, draw) for draw in range(few.shape["draws"])])
        grads = torch.autograd.grad(expected, [*wide.values()], way.grad.double())
        right = {"output": expected.detach(), **dict(zip(wide, grads, strict=True))}
        wrong = [laws.near(name, found[name], right[name], DTYPES[case.dtype]) for name in right]
        if contender == "ours" and not any(wrong):
            with torch.no_grad():
                way = self.make(contender, case, device)
                last = case.shape["draws"] - 1
                wide = {name: tensor.double() for name, tensor in way.tensors.items()}
                wrong = [laws.near("the last draw", way.forward()[last], _masked(wide, last), DTYPES[case.dtype])]
        first = next(filter(None, wrong), None)
        return Verdict(first, bits_equal=None if contender == "dense" else first is None)

    def work(self, case: Case, part: str) -> Work:
        """Count 2 D M N K operations a product, and every operand and result once in each direction."""
        rows, cols, tokens, draws = (case.shape[name] for name in ("rows", "cols", "tokens", "draws"))
        flops = 2 * draws * tokens * rows * cols
        return product_work(case, part, flops, rows * cols, tokens * (cols + draws * rows))


def _masked(wide: Mapping[str, Tensor], draw: int) -> Tensor:
    """Return the output [M, N] under the contract's mask of a draw, with straight-through gradients."""
    keep, q = contract_mask(wide["logits"].float(), draw), torch.sigmoid(wide["logits"])
    return wide["x"] @ (wide["weight"] * (keep + q - q.detach())).T
