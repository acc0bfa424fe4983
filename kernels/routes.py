"""The routes of a masked product, and the rule that chooses one by shape, dtypes, draws and GPU.

===========  ==============================================  =====================================================
route        product                                         gradients of weights and logits
===========  ==============================================  =====================================================
in_register  masks sampled in the main loop from the logits  one pass with dx for one draw of few tokens, else a
                                                             fused product; from 1025 tokens on as prepass
thresholds   the same from packed thresholds                 as in_register
prepass      temporary masked weights, then cuBLAS           cuBLAS for G, then one elementwise pass
===========  ==============================================  =====================================================

The masks are bit-equal on every route. The rule chooses the route with the smallest estimated time of the product. The
estimate combines bytes divided by the bandwidth of a copy, operations divided by the rate of a main loop or of cuBLAS,
and launches. To form thresholds takes one more pass over the logits; the main loop then needs less than half of the
instructions. If the thresholds are cached (``stochprune.kernels.cache``), this pass is free. ``stochprune bench
--calibrate`` measures the constants on a GPU. Until then the package uses estimates for an H200: the kernels were
compiled and interpreted, but not yet run on a GPU. ``STOCHPRUNE_ROUTE`` overrides the rule.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import NamedTuple

import torch
import triton

from .matmul import precision, tile_for, usable
from .philox import GROUP

ROUTES = ("in_register", "thresholds", "prepass")
OVERRIDE = "STOCHPRUNE_ROUTE"
PRECISIONS = ("16 bits", "tf32", "fp32")
FUSED_TOKENS = 1024
"""Most tokens for which G stays in registers, instead of a product by cuBLAS whose result is written and read."""


class Constants(NamedTuple):
    """Measured or estimated constants of one GPU; the last four hold one value for each of ``PRECISIONS``."""

    bandwidth: float  # bytes that a copy reads and writes in a second
    launch: float  # seconds from one kernel to the next
    matmul: tuple[float, float, float]  # operations of torch's product in a second
    loop: tuple[float, float, float]  # operations of our main loop in a second, without masks
    from_logits: tuple[float, float, float]  # additional seconds for each weight of a tile, sampled from logits
    from_thresholds: tuple[float, float, float]  # the same, from packed thresholds


# The last two are the instructions that the compile table counts, divided by the rate at which an H200 issues them.
ROOFLINE = Constants(
    bandwidth=4.3e12,
    launch=3e-6,
    matmul=(790e12, 400e12, 50e12),
    loop=(630e12, 250e12, 40e12),
    from_logits=(0.65e-12, 0.8e-12, 0.8e-12),
    from_thresholds=(0.3e-12, 0.4e-12, 0.4e-12),
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
    col: int = 0  # the first weight's column in the contract's matrix
    formed: bool = False  # the thresholds are cached

    def seconds(self, device: torch.device) -> dict[str, float]:
        """Return the estimated seconds of each route."""
        gpu, kind = constants(device), _kind(self.dtype)
        x, w, logit = (t.itemsize for t in (self.dtype, self.weight_dtype, self.logits_dtype))
        weights = self.rows * self.cols

        def memory(bytes_a_weight: float) -> float:
            return weights * bytes_a_weight / gpu.bandwidth

        def loop(bytes_a_weight: float, sampling: float, thresholds: bool) -> float:
            # All draws and tiles of tokens read the same weights, from the cache after the first time.
            tile = tile_for(self.tokens, usable(self.dtype, device, thresholds=thresholds)).tokens
            passes = self.draws * triton.cdiv(self.tokens, tile)
            arithmetic = passes * weights * (sampling + 2 * tile / gpu.loop[kind])
            return gpu.launch + max(memory(bytes_a_weight), arithmetic)

        forming = 0.0 if self.formed else gpu.launch + memory(logit + 2)
        matmul = 2 * self.tokens * weights / gpu.matmul[kind]
        return {
            "in_register": loop(w + logit, gpu.from_logits[kind], False),
            "thresholds": loop(w + 2, gpu.from_thresholds[kind], True) + forming,
            "prepass": 2 * gpu.launch + memory(w + logit) + self.draws * (memory(x) + max(memory(x), matmul)),
        }


def _kind(dtype: torch.dtype) -> int:
    return 0 if dtype.itemsize == 2 else 1 if precision(dtype) == "tf32" else 2


def calibration_file() -> Path:
    """Return the path of the measured constants, a JSON file by the name of the GPU."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "stochprune" / "routes.json"


@functools.cache
def constants(device: torch.device) -> Constants:
    """Return the constants of a device: measured ones if there are any, otherwise the estimates."""
    path = calibration_file()
    if device.type == "cuda" and path.exists():
        measured = json.loads(path.read_text()).get(torch.cuda.get_device_name(device))
        if measured is not None:
            return Constants(**{name: tuple(v) if isinstance(v, list) else v for name, v in measured.items()})
    return ROOFLINE


def choose(product: Product, estimator: str, device: torch.device) -> str:
    """Return the route of a product.

    Only hard masks have thresholds. Main loops sample whole groups of columns, so the first column of their
    matrix must be a multiple of 64.

    Raises:
        ValueError: the override names an unknown route.
    """
    forced = os.environ.get(OVERRIDE)
    if forced and forced not in ROUTES:
        raise ValueError(f"{OVERRIDE}: unknown route '{forced}'; known are: {', '.join(ROUTES)}")
    if product.col % GROUP.value:
        return "prepass"
    possible = [route for route in ROUTES if route != "thresholds" or estimator.startswith("straight_through")]
    if forced in possible:
        return forced
    seconds = product.seconds(device)
    return min(possible, key=lambda route: seconds[route])


def table(rows: int, cols: int, device: torch.device, draws: int = 1) -> str:
    """Return the rule as text, for hard masks and weights in x's dtype: microseconds by route, the choice marked."""
    lines = [f"{rows} x {cols}, {draws} draws; estimated microseconds of a product", f"{'tokens':>8}  precision"]
    lines[1] += "".join(f"{route:>14}" for route in ROUTES)
    for dtype in (torch.bfloat16, torch.float32):
        for tokens in (1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 16384):
            product = Product(draws, tokens, rows, cols, dtype, dtype, dtype)
            chosen = choose(product, "straight_through", device)
            times = product.seconds(device).items()
            cells = (f"{1e6 * seconds:>12.1f}{'*' if route == chosen else '':<2}" for route, seconds in times)
            lines.append(f"{tokens:>8}  {PRECISIONS[_kind(dtype)]:<9}{''.join(cells)}")
    return "\n".join([*lines, f"override: {OVERRIDE}={os.environ.get(OVERRIDE) or '(unset)'}"])
