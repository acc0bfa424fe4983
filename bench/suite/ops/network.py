"""A whole network: each linear layer and convolution masked, by this package or in plain PyTorch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

import stochprune as sp
from stochprune.nn import masked_layers

from .. import laws
from ..case import DTYPES, Case, Verdict, Way, Work, is_ours
from .layer import product_work
from .linear import PRUNE
from .network_ways import WAYS, Parts

FUSED = "ours, fused masking"
EXAMPLES = 2
"""Examples on which a network is checked."""
DEPTH = 50
"""By this factor the rounding of a network may exceed that of a product."""


class Network:
    """Loss and gradients of a network, without an optimiser; shape: examples.

    Args:
        build: makes the dense network, always the same.
        inputs: makes so many examples.
    """

    baseline = "dense"
    laws: Mapping[str, str] = {
        "dense": "none",
        "ours": "bernoulli",
        FUSED: "bernoulli",
        "eager": "bernoulli",
        PRUNE: "fixed",
    }

    def __init__(self, build: Callable[[], nn.Module], inputs: Callable[[int], Tensor]) -> None:
        self.build, self.inputs = build, inputs

    def make(self, contender: str, case: Case, device: torch.device) -> Way:
        """Return a contender at the case's shape."""
        return self.made(contender, case, device, DTYPES[case.dtype])[1]

    def made(self, contender: str, case: Case, device: torch.device, dtype: torch.dtype) -> tuple[Parts, Way]:
        """Return the masked layers of a contender, and the contender."""
        model = self.build().train().to(device, dtype)
        parts = WAYS[contender](model, self._names)
        for part in parts.values():
            part.weight.detach().masked_fill_(part.weight == 0, 1e-3)  # a zero would look like a masked weight
            part.weight.requires_grad_(case.mode == "joint" or contender in ("dense", PRUNE))
        x = self.inputs(case.shape["examples"]).to(device, dtype)
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers()), "x": x}
        weights = sum(part.weight.numel() for part in parts.values())
        way = Way(lambda: _loss(model(x)), tensors, None, weights)
        if contender == FUSED:
            way = dataclasses.replace(way, within=lambda: sp.nn.fused_masking(model), countable=False)
        return parts, way

    def check(self, contender: str, case: Case, device: torch.device) -> Verdict:
        """Compare a small batch with a dense network that has the same masked weights: the loss, and all gradients.

        Of the case's batch the loss is compared, and the gradients must be finite.
        Gradients are compared in float64: in float32 two right ways differ where a unit is near 0, by whole gradients.
        The masks of ours are those of the contract; the other contenders show the weights that they use.
        """
        small = dataclasses.replace(case, shape={"examples": EXAMPLES})
        parts, way = self.made(contender, small, device, torch.float64)
        with way.within(), parametrize.cached():
            loss = way.forward()
            sampled = {name: part.sampled().detach().clone() for name, part in parts.items()}
            grads = {id(way.tensors[name]): grad for name, grad in way.backward(loss).items()}
        model = self.build().train().to(device).double()
        given = {**dict(model.named_parameters()), **{name: w.requires_grad_() for name, w in sampled.items()}}
        right = _loss(torch.func.functional_call(model, given, (way.tensors["x"],)))
        exact = dict(zip(given, torch.autograd.grad(right, [*given.values()]), strict=True))
        near = functools.partial(laws.near, dtype=torch.float32)
        wrong = near("loss", loss.detach(), right.detach())
        if self.laws[contender] == "bernoulli":
            keep = torch.cat([w.detach().flatten() != 0 for w in sampled.values()])
            logits = torch.cat([part.logits.detach().flatten() for part in parts.values() if part.logits is not None])
            wrong = wrong or laws.shares(keep, logits)
        for name, part in parts.items():
            w, g, keep = part.weight.detach(), exact[name], sampled[name].detach() != 0
            if id(part.weight) in grads:
                wrong = wrong or near(f"gradient of {name}", grads[id(part.weight)], g * keep)
            if part.logits is not None:
                q = torch.sigmoid(part.logits.detach())
                wrong = wrong or near(f"gradient of the logits of {name}", grads[id(part.logits)], g * w * q * (1 - q))
        wrong = wrong or self._large(contender, case, device)
        if wrong is not None or not is_ours(contender):
            return Verdict(wrong)
        _, way = self.made(contender, small, device, DTYPES[case.dtype])
        with way.within():
            wrong = laws.near("loss", way.forward().detach(), right.detach(), DTYPES[case.dtype], factor=DEPTH)
        return Verdict(wrong, all(part.equal() for part in parts.values()))

    def _large(self, contender: str, case: Case, device: torch.device) -> str | None:
        """Return what is wrong with the loss of the case's batch, or with its gradients, or None."""
        dtype = DTYPES[case.dtype]
        parts, way = self.made(contender, case, device, dtype)
        with way.within(), parametrize.cached():
            loss = way.forward()
            sampled = {name: part.sampled().detach().clone() for name, part in parts.items()}
            grads = way.backward(loss)
        model = self.build().train().to(device, dtype)
        with torch.no_grad():
            right = _loss(torch.func.functional_call(model, sampled, (way.tensors["x"],)))
        wrong = laws.near("loss of the case's batch", loss.detach(), right, dtype, factor=DEPTH)
        strange = [name for name, grad in grads.items() if not grad.isfinite().all()]
        return wrong or (f"the gradient of {strange[0]} is not finite" if strange else None)

    def work(self, case: Case, part: str) -> Work:
        """Count the operations of the dense network, and every weight and logit once."""
        examples = case.shape["examples"]
        return product_work(case, part, self._flops * examples, self._weights, self.inputs(1).numel() * examples)

    @functools.cached_property
    def _names(self) -> list[str]:
        """The names of the weights that are masked."""
        return [*masked_layers(sp.convert(self.build()))]

    @functools.cached_property
    def _weights(self) -> int:
        given = dict(self.build().named_parameters())
        return sum(given[name].numel() for name in self._names)

    @functools.cached_property
    def _flops(self) -> int:
        """The operations of a forward pass of one example."""
        return flops_of(self.build(), self.inputs(1))


def flops_of(model: nn.Module, x: Tensor) -> int:
    """Return the operations of a forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(x)
    return int(counter.get_total_flops())


def _loss(y: Tensor) -> Tensor:
    rows = y.flatten(0, -2).float() if y.dtype != torch.float64 else y.flatten(0, -2)
    return F.cross_entropy(rows, torch.arange(len(rows), device=y.device) % rows.shape[1])


def images(count: int) -> Tensor:
    """Return images [count, 3, 32, 32] without a random generator."""
    return torch.linspace(-1, 1, count * 3 * 32 * 32).view(count, 3, 32, 32).mul(1e4).sin()
