"""A linear layer under a Bernoulli mask: ours, and ways to write it in plain PyTorch."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from stochprune import backends

from .. import laws
from ..case import Absent, Case, Way
from ..laws import Pass
from . import linear_ways
from .layer import FIXED, LayerOp, Make, Within

CACHED, WITHOUT_AMX = "ours, cached thresholds", "ours, without AMX"
ROUTES = {f"ours, {route}": route for route in ("in_register", "thresholds", "prepass")}
"""The routes of the Triton backend, each for all sizes; *ours* chooses one for the size."""
ROUTE = "STOCHPRUNE_ROUTE"
"""The environment variable that chooses a route, see :mod:`stochprune.kernels.routes`."""
PRUNE = "torch.nn.utils.prune"


class Linear(LayerOp):
    """``x (m * weight)^T + bias`` with straight-through gradients; shape: rows, cols, tokens.

    The layer of torch.nn.utils.prune has one mask for all passes, and trains its weights: the memory and the time of
    what is common today.
    """

    laws: Mapping[str, str] = {
        "dense": "none",
        "ours": "bernoulli",
        CACHED: "bernoulli",
        WITHOUT_AMX: "bernoulli",
        **dict.fromkeys(ROUTES, "bernoulli"),
        "eager": "bernoulli",
        "bernoulli": "bernoulli",
        "seed replay": "bernoulli",
        "compile": "bernoulli",
        PRUNE: "fixed",
    }

    def wrong(self, contender: str, case: Case, way: Way, one: Pass, other: Pass) -> str | None:
        """Compare with the law of the contender."""
        if self.laws[contender] in FIXED:
            weight, logits = (way.tensors[name].detach() for name in ("weight", "logits"))
            return laws.fixed(weight * (logits > 0) if self.laws[contender] == "fixed" else weight, one)
        return super().wrong(contender, case, way, one, other)

    def keeps(self, way: Way, keep: Tensor) -> bool:
        """Return True if a layer keeps just the weights of ``keep`` in the columns that unit vectors show."""
        x, weight, logits, bias = (tensor.detach() for tensor in way.tensors.values())
        columns = torch.randperm(len(weight[0]), generator=torch.Generator().manual_seed(3))[: len(x)].to(x.device)
        units = torch.zeros_like(x)[: len(columns)]
        units[torch.arange(len(columns)), columns] = 1
        with torch.no_grad(), way.within():
            shown = linear_ways.ours(weight, logits, torch.zeros_like(bias))(units).T != 0  # its first mask, as keep
        return torch.equal(shown, (keep & (weight != 0))[:, columns])

    def made(self, contender: str, case: Case, like: Tensor) -> tuple[Make, Within]:
        """Return the function that makes a contender, and the context in which it runs."""
        backend = backends.resolve(like).NAME
        if contender in ROUTES:
            if backend != "triton":
                raise Absent("the route belongs to the Triton backend")
            return linear_ways.ours, functools.partial(_routed, ROUTES[contender])
        if contender == CACHED:
            return linear_ways.ours, cached_within(like)
        if contender == WITHOUT_AMX:
            if backend != "native" or like.dtype != torch.bfloat16 or not _has_amx():
                raise Absent("AMX serves bfloat16, on processors that have it")
            return linear_ways.ours, _without_amx
        return linear_ways.CONTENDERS[contender], contextlib.nullcontext


def cached_within(like: Tensor) -> Within:
    """Return the context in which the C++ backend keeps the thresholds of logits that do not change.

    Raises:
        Absent: another backend serves the device of ``like``.
    """
    if backends.resolve(like).NAME != "native":
        raise Absent("the cache of thresholds belongs to the C++ backend")
    return _cached


@contextlib.contextmanager
def _cached() -> Iterator[None]:
    from stochprune.native import cache  # here: the C++ backend may not be built

    former, cache.enabled = cache.enabled, True
    try:
        yield
    finally:
        cache.enabled = former


@contextlib.contextmanager
def _routed(route: str) -> Iterator[None]:
    former = os.environ.get(ROUTE)
    os.environ[ROUTE] = route
    try:
        yield
    finally:
        if former is None:
            del os.environ[ROUTE]
        else:
            os.environ[ROUTE] = former


@contextlib.contextmanager
def _without_amx() -> Iterator[None]:
    from stochprune import _C

    _C.use_instruction_set("avx512")
    try:
        yield
    finally:
        _C.use_instruction_set("amx")


def _has_amx() -> bool:
    from stochprune import _C

    return _C.instruction_set() == "amx"
