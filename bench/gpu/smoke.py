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
from stochprune.functional import masked_conv2d, masked_linear

# M, N, K: four shapes with the tiles of the larger benchmark, and an odd one
SHAPES = [(16, 4096, 512), (64, 2048, 1024), (128, 1024, 2048), (512, 512, 1024), (300, 77, 333)]
# D, N, C, H: convolutions of 3 x 3 with D images of H x H, each with a mask of its own
CONVOLUTIONS = [(64, 64, 64, 14), (5, 77, 20, 9)]
DTYPE = torch.bfloat16
REPEATS = 200
TOLERANCE = 1e-2  # relative to the norm; bfloat16 inputs give 2e-3 to 5e-3, a wrong tile gives more than 1e-1
AT: dict[str, Any] = {"stream": 7, "estimator": "straight_through"}
NAMES = ("y", "dx", "dweight", "dlogits", "dbias")


def cases() -> list[str]:
    """Return one shape with every way, then the next shape: so a lane has one way, and a crash stops one way only."""
    device.require()
    return [f"{way} {'x'.join(map(str, sizes))}" for sizes in SHAPES + CONVOLUTIONS for way in device.ways()]


def run(case: str) -> dict[str, Any]:
    """Return the relative errors, and how many of the repeats differed."""
    way, shape = case.split()
    sizes = tuple(map(int, shape.split("x")))
    tensors = [t.to(device.DEVICE) for t in inputs(*sizes)]
    with device.forced(way), torch.backends.cudnn.flags(enabled=True, deterministic=True):
        first = step(*tensors)
        different = torch.zeros(len(NAMES), dtype=torch.int64, device=device.DEVICE)
        for _ in range(REPEATS):
            different += torch.stack([(a != b).any() for a, b in zip(step(*tensors), first, strict=True)])
    exact = reference(*sizes)
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


def inputs(*sizes: int) -> list[Tensor]:
    """Return x, weight, logits, bias and the gradient of the output, on the CPU; three sizes are of a linear layer."""
    generator = torch.Generator().manual_seed(sum(sizes))

    def make(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DTYPE)

    if len(sizes) == 4:
        d, n, c, h = sizes
        x, grad = make(d, 1, c, h, h), make(d, 1, n, h, h)
        return [x, make(n, c, 3, 3) / (9 * c) ** 0.5, 2 * make(n, c, 3, 3), make(n), grad]
    m, n, k = sizes
    return [make(m, k), make(n, k) / k**0.5, 2 * make(n, k), make(n), make(m, n)]


def step(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the output and the gradients of x, weight, logits and bias."""
    leaves = [t.detach().requires_grad_() for t in tensors[:4]]
    seed, draw = (torch.tensor([number], device=leaves[0].device) for number in (-77, 5))
    if leaves[1].dim() == 4:
        draws = draw + torch.arange(len(leaves[0]), device=draw.device)
        y = masked_conv2d(*leaves, seed=seed, draw=draws, padding=1, **AT)
    else:
        y = masked_linear(*leaves, seed=seed, draw=draw, **AT)
    return y.detach(), *torch.autograd.grad(y, leaves, tensors[4])


@functools.cache
def reference(*sizes: int) -> tuple[Tensor, ...]:
    """Return the result of :func:`step` in float64, computed by the reference on the CPU."""
    os.environ[backends.OVERRIDE] = "reference"
    try:
        return step(*(t.double() for t in inputs(*sizes)))
    finally:
        del os.environ[backends.OVERRIDE]
