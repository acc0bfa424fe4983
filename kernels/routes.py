"""Which kernels serve a masked product: a table one can print, and a rule by shape, dtypes, draws and GPU.

===========  =======================================  ============================================================
route        product                                  gradients of weights and logits
===========  =======================================  ============================================================
in_register  masks drawn in the main loop             one pass with dx for one draw of few tokens, else fused matmul
bits         transient 1-bit masks, read in the loop  cuBLAS for G, then one elementwise pass
prepass      transient masked weights, then cuBLAS    cuBLAS for G, then one elementwise pass
===========  =======================================  ============================================================

The masks are the same bits on every route. The rule takes the route whose product is modelled to be fastest: bytes
over the bandwidth of a copy, operations over what a main loop or cuBLAS reaches, and launches. The constants of a GPU
are measured by ``stochprune bench --calibrate``; those of the package are estimates for an H200, since the kernels
are compiled and interpreted, not yet run on a GPU. ``STOCHPRUNE_ROUTE`` overrides the rule.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import NamedTuple

import torch
import triton

from .matmul import precision, usable
from .philox import GROUP

ROUTES = ("in_register", "bits", "prepass")
OVERRIDE = "STOCHPRUNE_ROUTE"
PRECISIONS = ("16 bits", "tf32", "fp32")


class Constants(NamedTuple):
    """What one GPU reaches. The last three for each of the precisions."""

    bandwidth: float  # bytes read and written a second by a copy
    launch: float  # seconds from one kernel to the next
    matmul: tuple[float, float, float]  # operations a second of torch's product
    drawing: tuple[float, float, float]  # seconds for a weight and a tile of tokens, its mask drawn in the loop
    reading: tuple[float, float, float]  # the same, its mask read as a bit


ROOFLINE = Constants(
    bandwidth=4.3e12,
    launch=3e-6,
    matmul=(790e12, 400e12, 50e12),
    drawing=(0.75e-12, 1.2e-12, 3e-12),
    reading=(0.5e-12, 1.0e-12, 3e-12),
)


class Product(NamedTuple):
    """A masked product: x [D, M, K] of one dtype with weights and logits [N, K]."""

    draws: int
    tokens: int
    rows: int
    cols: int
    dtype: torch.dtype
    weight_dtype: torch.dtype
    logits_dtype: torch.dtype
    col: int = 0  # the contract's column of the first weight

    def seconds(self, device: torch.device) -> dict[str, float]:
        """The modelled time of each route."""
        gpu, kind = constants(device), _kind(self.dtype)
        x, w, logit = (t.itemsize for t in (self.dtype, self.weight_dtype, self.logits_dtype))
        weights = self.draws * self.rows * self.cols
        tiles = triton.cdiv(self.tokens, usable(self.dtype, device)[-1].tokens)

        def memory(bytes_a_weight: float) -> float:
            return weights * bytes_a_weight / gpu.bandwidth

        drawing, reading = (tiles * weights * loop[kind] for loop in (gpu.drawing, gpu.reading))
        matmul = 2 * self.tokens * weights / gpu.matmul[kind]
        return {
            "in_register": gpu.launch + max(memory(w + logit), drawing),
            "bits": 2 * gpu.launch + memory(logit + 1 / 8) + max(memory(w + 1 / 8), reading),
            "prepass": 2 * gpu.launch + memory(w + logit + x) + max(memory(x), matmul),
        }


def _kind(dtype: torch.dtype) -> int:
    return 0 if dtype.itemsize == 2 else 1 if precision(dtype) == "tf32" else 2


def calibration_file() -> Path:
    """Where the measured constants are kept, by the name of the GPU."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "stochprune" / "routes.json"


@functools.cache
def constants(device: torch.device) -> Constants:
    """The constants of a device: measured ones if there are any, else estimates."""
    path = calibration_file()
    if device.type == "cuda" and path.exists():
        measured = json.loads(path.read_text()).get(torch.cuda.get_device_name(device))
        if measured is not None:
            return Constants(**{name: tuple(v) if isinstance(v, list) else v for name, v in measured.items()})
    return ROOFLINE


def choose(product: Product, estimator: str, device: torch.device) -> str:
    """The route of a product; only hard masks fit in bits, and main loops draw from whole groups of columns on.

    Raises:
        ValueError: the override names an unknown route.
    """
    forced = os.environ.get(OVERRIDE)
    if forced and forced not in ROUTES:
        raise ValueError(f"{OVERRIDE}: unknown route '{forced}'; known are: {', '.join(ROUTES)}")
    if product.col % GROUP.value:
        return "prepass"
    hard = estimator.startswith("straight_through")
    if forced and (hard or forced != "bits"):
        return forced
    seconds = product.seconds(device)
    return min((route for route in ROUTES if hard or route != "bits"), key=lambda route: seconds[route])


def table(rows: int, cols: int, device: torch.device, draws: int = 1) -> str:
    """The rule as text, for hard masks of weights in x's dtype: microseconds of each route, the chosen one marked."""
    lines = [f"{rows} x {cols}, {draws} draws; modelled microseconds of a product", f"{'tokens':>8}  precision"]
    lines[1] += "".join(f"{route:>14}" for route in ROUTES)
    for dtype in (torch.bfloat16, torch.float32):
        for tokens in (1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 16384):
            product = Product(draws, tokens, rows, cols, dtype, dtype, dtype)
            chosen = choose(product, "straight_through", device)
            times = product.seconds(device).items()
            cells = (f"{1e6 * seconds:>12.1f}{'*' if route == chosen else '':<2}" for route, seconds in times)
            lines.append(f"{tokens:>8}  {PRECISIONS[_kind(dtype)]:<9}{''.join(cells)}")
    return "\n".join([*lines, f"override: {OVERRIDE}={os.environ.get(OVERRIDE) or '(unset)'}"])
