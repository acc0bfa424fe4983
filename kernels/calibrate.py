"""Measure the constants on which the choice of routes depends, on the current GPU."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from triton.testing import do_bench

from stochprune.address import Logits, Mask
from stochprune.seeding import generator

from . import routes
from .mask_bits import mask_bits
from .masked_matmul import masked_matmul
from .matmul import usable

SIZE = 4096
"""Rows, columns and tokens of the timed products: so large that arithmetic takes the time, not memory or launches."""
COPY = 1 << 30
"""Bytes of the timed copy."""


def calibrate() -> routes.Constants:
    """Time the current device and return its constants; write them to :func:`.routes.calibration_file` and use them.

    Raises:
        RuntimeError: torch sees no GPU.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("calibration needs an NVIDIA GPU; torch sees none here")
    measured = measure(torch.device("cuda", torch.cuda.current_device()))
    path = routes.calibration_file()
    known = json.loads(path.read_text()) if path.exists() else {}
    known[torch.cuda.get_device_name()] = measured._asdict()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=1) + "\n")
    routes.constants.cache_clear()
    return measured


def measure(device: torch.device) -> routes.Constants:
    """Return the measured constants of a device."""
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        found = [_products(kind, device) for kind in routes.PRECISIONS]
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    matmul, drawing, reading = zip(*found, strict=True)
    source = torch.empty(COPY, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / _seconds(lambda: target.copy_(source))
    small = torch.zeros(32, device=device)

    def twenty() -> None:
        for _ in range(20):
            small.add_(1)

    return routes.Constants(bandwidth, _seconds(twenty) / 20, matmul, drawing, reading)


def _products(kind: str, device: torch.device) -> tuple[float, float, float]:
    """Return the rate of torch's product, and the seconds of our two loops for one weight and one tile of tokens."""
    dtype = torch.bfloat16 if kind == "16 bits" else torch.float32
    torch.backends.cuda.matmul.fp32_precision = "tf32" if kind == "tf32" else "ieee"
    numbers = generator(0, "calibrate", kind)
    x, weight, logits = (
        torch.from_numpy(numbers.standard_normal((SIZE, SIZE), np.float32)).to(device, dtype) for _ in range(3)
    )
    number = torch.zeros(1, dtype=torch.int64, device=device)
    mask = Mask(number, number, 1)
    out, levels = torch.empty_like(x)[None], Logits(logits)
    bits = mask_bits(levels, mask=mask)
    loops = SIZE * SIZE * SIZE / usable(dtype, x.device)[-1].tokens

    def masked(packed: Tensor | None) -> float:
        return _seconds(lambda: masked_matmul(x[None], weight, levels, None, mask=mask, out=out, bits=packed)) / loops

    return 2 * SIZE**3 / _seconds(lambda: x @ weight.mT), masked(None), masked(bits)


def _seconds(run: Callable[[], object]) -> float:
    return 1e-3 * do_bench(run, warmup=25, rep=100, return_mode="median")
