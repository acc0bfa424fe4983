"""Self-attention whose projections have Bernoulli masks: ours, and ways to write it in plain PyTorch."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stochprune as sp

from ..case import Case, Way, Work
from ..laws import Pass, Product
from .layer import SEED, STREAM, Forward, LayerOp, Make, Within, contract_mask, product_work
from .linear_ways import by_bernoulli, compile_fresh, straight_through

HEADS = 4
PARTS = ("in_proj_weight", "out_proj.weight")
"""The weights of torch's module, [3 E, E] and [E, E]; joined they are one weight [4 E, E]."""
STREAMS = STREAM, STREAM + 1
"""Streams of our two masks."""
PROBE = {"examples": 2, "tokens": 8, "width": 16}
"""Sizes of the layer that is checked from outside."""


class Attention(LayerOp):
    """torch's nn.MultiheadAttention of one input with itself, without biases; shape: examples, tokens, width.

    Its output does not show its weights, but their straight-through gradients do: they are 0 where a mask is. Then the
    output, and all gradients, must be those of attention with these weights. So a layer is looked at while it trains
    its weights, in the mode ``mask-only`` too. Ours is checked in both, because the contract says what its masks are.
    """

    laws: Mapping[str, str] = {
        "dense": "none",
        "ours": "bernoulli",
        "eager": "bernoulli",
        "bernoulli": "bernoulli",
        "compile": "bernoulli",
    }

    def __init__(self) -> None:
        self.product = Product(_exact, lambda x, y: y)

    def shapes(self, contender: str, case: Case) -> dict[str, tuple[int, ...]]:
        """Return the shapes of x, y, and of weight and logits, joined."""
        examples, tokens, width = (case.shape[name] for name in PROBE)
        x = examples, tokens, width
        return {"x": x, "y": x, "weight": (4 * width, width), "parameter": (4 * width, width)}

    def small(self, case: Case) -> Case:
        """Return a small case that trains its weights."""
        return dataclasses.replace(case, shape={**case.shape, **PROBE}, mode="joint")

    def units(self, case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return any input, and a gradient of the output."""
        return self.inputs(case, device)

    def tensors(self, contender: str, case: Case, device: torch.device) -> dict[str, nn.Parameter]:
        """Return weights and logits of both projections; the scores of attention have a variance of about 1."""
        found, width = super().tensors(contender, case, device), case.shape["width"]
        found["weight"].detach().div_(math.sqrt(width))
        return {
            f"{name} of {part}": nn.Parameter(tensor, requires_grad=whole.requires_grad)
            for name, whole in found.items()
            for part, tensor in zip(PARTS, whole.detach().split([3 * width, width]), strict=True)
        }

    def joined(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return tensors, or their gradients, with one weight and one parameter."""
        found = {"x": tensors["x"]}
        for name in ("weight", self.parameter):
            if parts := [tensors[key] for part in PARTS if (key := f"{name} of {part}") in tensors]:
                found[name] = torch.cat([part.detach() for part in parts])
        return found

    def ran(self, way: Way) -> Pass:
        """Run a forward and a backward pass; the gradient of the weights shows their mask."""
        found = super().ran(way)
        if (grad := found.grads.get("weight")) is None:
            return found
        return dataclasses.replace(found, weights=self.joined(way.tensors)["weight"] * (grad != 0))

    def large(self, contender: str, case: Case, device: torch.device) -> str | None:
        """Return what is wrong with a layer of the case's shape that trains its weights, or None."""
        case = dataclasses.replace(case, mode="joint")
        return self.outside(contender, case, self.make(contender, case, device))[0]

    def made(self, contender: str, case: Case, like: Tensor) -> tuple[Make, Within]:
        """Return the function that makes a contender, and no context."""
        return CONTENDERS[contender], contextlib.nullcontext

    def contract(self, case: Case, logits: Tensor) -> Tensor:
        """Return the masks of the first pass by the slow text of the contract, bool [4 E, E]; each has its stream."""
        width = case.shape["width"]
        parts = logits.split([3 * width, width])
        return torch.cat([contract_mask(part, 0, stream=stream) for part, stream in zip(parts, STREAMS, strict=True)])

    def work(self, case: Case, part: str) -> Work:
        """Count the products of the projections and of attention, and weights, logits, input and output once."""
        examples, tokens, width = (case.shape[name] for name in PROBE)
        rows, weights = examples * tokens, 4 * width**2
        return product_work(case, part, 2 * rows * (weights + 2 * tokens * width), weights, 2 * rows * width)


def _exact(x: Tensor, weight: Tensor) -> Tensor:
    """Return attention by its formula; x [examples, tokens, E], weight [4 E, E]."""
    width = x.shape[-1]
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (x @ weight[: 3 * width].T).chunk(3, -1))
    scores = torch.softmax(q @ k.mT / math.sqrt(width // HEADS), -1)
    return (scores @ v).transpose(1, 2).flatten(2) @ weight[3 * width :].T


def _module(inner: nn.Parameter, outer: nn.Parameter) -> nn.MultiheadAttention:
    """Return torch's module with these weights."""
    module = nn.MultiheadAttention(outer.shape[1], HEADS, bias=False, batch_first=True, device="meta")
    module.in_proj_weight, module.out_proj.weight = inner, outer
    return module


def _self_attention(module: nn.Module) -> Forward:
    def forward(x: Tensor) -> Tensor:
        y: Tensor = module(x, x, x, need_weights=False)[0]
        return y

    return forward


def dense(inner: nn.Parameter, outer: nn.Parameter, *logits: Tensor) -> Forward:
    """Return torch's module. Its time is the lower bound."""
    return _self_attention(_module(inner, outer))


def eager(inner: Tensor, outer: Tensor, *logits: Tensor, mask: Callable[..., Tensor] = straight_through) -> Forward:
    """Return torch's function with masked weights in plain PyTorch; ``mask`` makes each of a weight and its logits."""

    def forward(x: Tensor) -> Tensor:
        first, last = (mask(*pair) for pair in zip((inner, outer), logits, strict=True))
        x = x.transpose(0, 1)
        y, _ = F.multi_head_attention_forward(
            *(x, x, x, x.shape[-1], HEADS),
            in_proj_weight=first,
            in_proj_bias=None,
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=last,
            out_proj_bias=None,
            need_weights=False,
        )
        return y.transpose(0, 1)

    return forward


def compiled(*tensors: Tensor) -> Forward:
    """Return the eager layer under ``torch.compile``."""
    return compile_fresh(eager(*tensors))


def ours(inner: nn.Parameter, outer: nn.Parameter, *logits: nn.Parameter) -> Forward:
    """Return stochprune.nn.MaskedMultiheadAttention, whose draws count from 0."""
    streams = dict(zip(PARTS, STREAMS, strict=True))
    layer = sp.nn.MaskedMultiheadAttention.from_dense(_module(inner, outer), seed=SEED, streams=streams)
    for mask, trained in zip(layer.masks().values(), logits, strict=True):
        mask.mask_logits = trained
    return _self_attention(layer)


CONTENDERS: dict[str, Make] = {
    "dense": dense,
    "ours": ours,
    "eager": eager,
    "bernoulli": partial(eager, mask=by_bernoulli),
    "compile": compiled,
}
