"""Sampling a mask and multiplying a weight with it, beside a copy of the weight."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from stochprune import backends, functional, rng
from stochprune.address import Logits

from .. import laws
from ..case import DTYPES, Case, Verdict, Way, Work, is_ours
from .layer import STREAM, Within, contract_mask, counter, random
from .linear import CACHED, cached_within

THRESHOLDS = "ours, thresholds alone"
PROBE = {"rows": 64, "cols": 192}


class MaskedWeight:
    """``m * weight`` without gradients; shape: rows, cols. ``ours, thresholds alone`` only quantises the logits."""

    baseline = "copy"
    laws: Mapping[str, str] = {
        "copy": "none",
        "ours": "bernoulli",
        CACHED: "bernoulli",
        "eager": "bernoulli",
        "bernoulli": "bernoulli",
        THRESHOLDS: "thresholds",
    }

    def make(self, contender: str, case: Case, device: torch.device) -> Way:
        """Return a contender at the case's shape."""
        shape = case.shape["rows"], case.shape["cols"]
        weight, logits = random(1, case, device, shape, shape)
        within: Within = cached_within(weight) if contender == CACHED else contextlib.nullcontext
        return Way(WAYS[contender](weight, logits), {"weight": weight, "logits": logits}, None, weight.numel(), within)

    def check(self, contender: str, case: Case, device: torch.device) -> Verdict:
        """Check a small weight from outside; for ours, also every bit at the case's shape."""
        way = self.make(contender, dataclasses.replace(case, shape=PROBE), device)
        weight, logits = way.tensors.values()
        with way.within():
            one, other = way.forward().clone(), way.forward()
        if contender in ("copy", THRESHOLDS):
            expected = weight if contender == "copy" else rng.threshold_from_logits(logits)
            return Verdict(None if torch.equal(one.long(), expected.long()) else "another result")
        keep = one != 0
        wrong = laws.shares(keep, logits) or laws.near("weights", one, weight.double() * keep, weight.dtype)
        if wrong is None and torch.equal(one, other):
            wrong = "two passes have the same mask"
        if wrong is not None or not is_ours(contender):
            return Verdict(wrong)
        way = self.make(contender, case, device)
        weight, logits = way.tensors.values()
        with way.within():
            return Verdict(None, torch.equal(way.forward(), weight * contract_mask(logits, draw=1)))

    def work(self, case: Case, part: str) -> Work:
        """Count the bytes of weight, logits and result."""
        return Work(0, 3 * DTYPES[case.dtype].itemsize * case.shape["rows"] * case.shape["cols"])


def _copy(weight: Tensor, logits: Tensor) -> Callable[[], Tensor]:
    return weight.clone


def _ours(weight: Tensor, logits: Tensor) -> Callable[[], Tensor]:
    seed, draws = counter(weight.device)

    def forward() -> Tensor:
        return functional.masked_weights([weight], [logits], seeds=seed, draws=draws(), streams=[STREAM])[0]

    return forward


def _eager(weight: Tensor, logits: Tensor) -> Callable[[], Tensor]:
    return lambda: weight * (torch.rand_like(logits) < torch.sigmoid(logits))


def _bernoulli(weight: Tensor, logits: Tensor) -> Callable[[], Tensor]:
    return lambda: weight * torch.bernoulli(torch.sigmoid(logits))


def _thresholds(weight: Tensor, logits: Tensor) -> Callable[[], Tensor]:
    backend, levels = backends.resolve(logits), Logits(logits)
    return lambda: backend.threshold_from_logits(levels)


WAYS = {
    "copy": _copy,
    "ours": _ours,
    CACHED: _ours,
    "eager": _eager,
    "bernoulli": _bernoulli,
    THRESHOLDS: _thresholds,
}
