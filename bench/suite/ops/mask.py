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
        """Check a small weight from outside, then one of the case's shape; for ours, also every bit of it."""
        for shape in (PROBE, case.shape):
            way = self.make(contender, dataclasses.replace(case, shape=shape), device)
            with way.within():
                one, other = way.forward().clone(), way.forward()
            weight, logits = way.tensors.values()
            if (wrong := _wrong(contender, weight, logits, one, other)) is not None:
                return Verdict(wrong)
        if self.laws[contender] != "bernoulli" or not is_ours(contender):
            return Verdict(None)
        return Verdict(None, torch.equal(one, weight * contract_mask(logits, draw=1)))

    def work(self, case: Case, part: str) -> Work:
        """Count the bytes of weight, logits and result."""
        return Work(0, 3 * DTYPES[case.dtype].itemsize * case.shape["rows"] * case.shape["cols"])


def _wrong(contender: str, weight: Tensor, logits: Tensor, one: Tensor, other: Tensor) -> str | None:
    """Return what is wrong with two results, or None."""
    if contender in ("copy", THRESHOLDS):
        same = torch.equal(one, weight) if contender == "copy" else torch.equal(one.long(), _levels(logits))
        return None if same else "another result"
    keep = one != 0
    wrong = laws.shares(keep, logits) or laws.near("weights", one, weight.double() * keep, weight.dtype)
    return wrong or ("two passes have the same mask" if torch.equal(one, other) else None)


def _levels(logits: Tensor) -> Tensor:
    return rng.threshold_from_logits(logits).long()


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
