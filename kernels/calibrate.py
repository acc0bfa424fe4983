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
from .masked_matmul import masked_matmul
from .matmul import usable
from .thresholds import packed_thresholds

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
    source = torch.empty(COPY, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / _seconds(lambda: target.copy_(source))
    small = torch.zeros(32, device=device)

    def twenty() -> None:
        for _ in range(20):
            small.add_(1)

    return routes.Constants(bandwidth, _seconds(twenty) / 20, *zip(*found, strict=True))


def _products(kind: str, device: torch.device) -> tuple[float, float, float, float]:
    """Return the operations of torch's product and of our loop in a second, and the seconds of sampling a weight.

    A tile of weights takes ``sampling + 2 * tokens / loop`` seconds for each of its weights. Two products of as many
    tokens, in narrow and in wide tiles, give both numbers.
    """
    dtype = torch.bfloat16 if kind == "16 bits" else torch.float32
    torch.backends.cuda.matmul.fp32_precision = "tf32" if kind == "tf32" else "ieee"
    numbers = generator(0, "calibrate", kind)
    tiles, drawing = usable(dtype, device, thresholds=True), usable(dtype, device)[-1].tokens
    total = max(SIZE, tiles[-1].tokens)
    x, weight, logits = (
        torch.from_numpy(numbers.standard_normal((rows, SIZE), np.float32)).to(device, dtype)
        for rows in (total, SIZE, SIZE)
    )
    levels = Logits(logits)
    packed = packed_thresholds(levels)
    number = torch.zeros(1, dtype=torch.int64, device=device)

    def loop(tokens: int, thresholds: Tensor | None) -> float:
        """Return the seconds for each weight of a tile of tokens."""
        draws = total // tokens
        mask = Mask(number, number.expand(draws).contiguous(), 1)
        given = x.view(draws, tokens, SIZE)
        out = torch.empty_like(given)
        seconds = _seconds(
            lambda: masked_matmul(given, weight, levels, None, mask=mask, out=out, thresholds=thresholds)
        )
        return seconds / (draws * SIZE * SIZE)

    narrow, wide = (loop(tile.tokens, packed) for tile in (tiles[0], tiles[-1]))
    rate = 2 * (tiles[-1].tokens - tiles[0].tokens) / max(wide - narrow, 1e-15)
    from_logits = loop(drawing, None) - 2 * drawing / rate
    from_thresholds = narrow - 2 * tiles[0].tokens / rate
    least = 1e-15  # the difference of two measurements may be negative
    matmul = 2 * total * SIZE**2 / _seconds(lambda: x @ weight.mT)
    return matmul, rate, max(from_logits, least), max(from_thresholds, least)


def _seconds(run: Callable[[], object]) -> float:
    return 1e-3 * do_bench(run, warmup=25, rep=100, return_mode="median")
