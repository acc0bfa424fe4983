"""Shared by the tests of all backends: the backends of this machine, masks, relative errors."""

from __future__ import annotations

import importlib.util

import torch

from stochprune import rng
from stochprune.address import Mask

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}  # relative, of the whole tensor
ESTIMATORS = ("straight_through", "concrete", "straight_through_concrete", "expected", "hard_concrete")
ON_GPU = ("triton", "cuda")
ALL, BOTH = (True,) * 3, (True,) * 2
SHAPES = [(1, 1, 1), (3, 5, 63), (7, 37, 64), (2, 33, 130), (4, 16, 257)]  # M, N, K


def _native_variants() -> list[str]:
    if importlib.util.find_spec("stochprune._C") is None:
        return []
    from stochprune import _C

    return [f"native-{name}" for name in (*_C.instruction_sets(), "amx-emulated")]


VARIANTS = ["reference", *_native_variants(), *(["triton"] if importlib.util.find_spec("triton") else []), "cuda"]


def dtypes(backend) -> list[torch.dtype]:
    # bfloat16 products are wrong in Triton's interpreter.
    names = {
        "reference": (torch.float64, torch.float32),
        "native": (torch.float32, torch.bfloat16),
        "cuda": (torch.float32, torch.bfloat16),
    }
    return list(names.get(backend.NAME, (torch.float32,)))


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    scale = expected.double().norm().clamp_min(1e-30)
    return float((actual.double().cpu() - expected.double().cpu()).norm() / scale)


def mask(seed: int, draws: int | list[int], stream: int, *options, device: str = "cpu", **offsets: int) -> Mask:
    """``options``: estimator and temperature."""
    draws = [draws] if isinstance(draws, int) else draws
    seeds = torch.tensor([rng.as_int64(seed)], device=device)
    return Mask(seeds, torch.tensor(draws, dtype=torch.int64, device=device), stream, *options, **offsets)


def moved(at: Mask, device: str) -> Mask:
    return at._replace(seed=at.seed.to(device), draw=at.draw.to(device))
