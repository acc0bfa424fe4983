"""Compare every way to compute a layer, forward and backward, with float64 on the CPU, then with 200 repeats of itself.

Most runs may be right in spite of a race between the warps of a kernel. Only repeats show it.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
from torch import Tensor

from bench.gpu import device
from bench.gpu.device import healthy as healthy
from bench.gpu.device import lost as lost
from bench.gpu.job import Failed
from stochprune import backends
from stochprune.functional import masked_linear

# M, N, K: four shapes with the tiles of the larger benchmark, and an odd one
SHAPES = [(16, 4096, 512), (64, 2048, 1024), (128, 1024, 2048), (512, 512, 1024), (300, 77, 333)]
DTYPE = torch.bfloat16
REPEATS = 200
TOLERANCE = 1e-2  # relative to the norm; bfloat16 inputs give 2e-3 to 5e-3, a wrong tile gives more than 1e-1
AT: dict[str, Any] = {"stream": 7, "estimator": "straight_through"}
NAMES = ("y", "dx", "dweight", "dlogits", "dbias")


def cases() -> list[str]:
    """Return one shape with every way, then the next shape: so a lane has one way, and a crash stops one way only."""
    device.require()
    return [f"{way} {m}x{n}x{k}" for m, n, k in SHAPES for way in device.ways()]


def run(case: str) -> dict[str, Any]:
    """Return the relative errors, and how many of the repeats differed."""
    way, shape = case.split()
    m, n, k = map(int, shape.split("x"))
    tensors = [t.to(device.DEVICE) for t in inputs(m, n, k)]
    with device.forced(way):
        first = step(*tensors)
        different = torch.zeros(len(NAMES), dtype=torch.int64, device=device.DEVICE)
        for _ in range(REPEATS):
            different += torch.stack([(a != b).any() for a, b in zip(step(*tensors), first, strict=True)])
    exact = reference(m, n, k)
    errors = {
        name: float((ours.double().cpu() - right).norm() / right.norm())
        for name, ours, right in zip(NAMES, first, exact, strict=True)
    }
    found = {"errors": errors, "repeats": REPEATS, "different": dict(zip(NAMES, different.tolist(), strict=True))}
    wrong = [name for name, error in errors.items() if not error <= TOLERANCE]  # NaN is wrong
    if wrong:
        raise Failed(f"{case}: {', '.join(wrong)} differ from float64 by more than {TOLERANCE:g}", found)
    if any(different.tolist()):
        raise Failed(f"{case}: of {REPEATS} repeats some gave other bits: a race", found)
    return found


def inputs(m: int, n: int, k: int) -> list[Tensor]:
    """Return x, weight, logits, bias and the gradient of the output, on the CPU."""
    generator = torch.Generator().manual_seed(m + n + k)

    def make(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DTYPE)

    return [make(m, k), make(n, k) / k**0.5, 2 * make(n, k), make(n), make(m, n)]


def step(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the output and the gradients of x, weight, logits and bias."""
    leaves = [t.detach().requires_grad_() for t in tensors[:4]]
    seed, draw = (torch.tensor([number], device=leaves[0].device) for number in (-77, 5))
    y = masked_linear(*leaves, seed=seed, draw=draw, **AT)
    return y.detach(), *torch.autograd.grad(y, leaves, tensors[4])


@functools.cache
def reference(m: int, n: int, k: int) -> tuple[Tensor, ...]:
    """Return the result of :func:`step` in float64, computed by the reference on the CPU."""
    os.environ[backends.OVERRIDE] = "reference"
    try:
        return step(*(t.double() for t in inputs(m, n, k)))
    finally:
        del os.environ[backends.OVERRIDE]
