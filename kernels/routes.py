"""Which kernels serve a masked product: a table one can print, and a rule by shape and dtype.

===========  =======================================  ============================================================
route        product                                  gradients of weights and logits
===========  =======================================  ============================================================
in_register  mask drawn in the main loop              one pass with dx for one draw of few tokens, else fused matmul
bits         transient 1-bit mask, read in the loop   cuBLAS for G, then one elementwise pass
prepass      transient masked weight, then cuBLAS     cuBLAS for G, then one elementwise pass
===========  =======================================  ============================================================

The masks are the same bits on every route. The limits below come from a roofline model of an H200: the routes are
compiled and interpreted, not yet run on a GPU. ``STOCHPRUNE_ROUTE`` overrides the rule.
"""

from __future__ import annotations

import os

import torch

from .matmul import precision

ROUTES = ("in_register", "bits", "prepass")
OVERRIDE = "STOCHPRUNE_ROUTE"
IN_REGISTER_TOKENS = 512
"""Up to here, reading the weights bounds the product, and drawing a mask for each tile of tokens is free."""
BITS_TOKENS = 2048
"""Up to here a bit mask, drawn once, costs less than writing and reading the masked weights."""
EXACT_TOKENS = 16
"""The limit for full float32, which takes three products here: beyond it cuBLAS is faster."""


def choose(tokens: int, dtype: torch.dtype, estimator: str) -> str:
    """The route for ``tokens`` rows of x under each mask.

    Args:
        tokens: M.
        dtype: that of x.
        estimator: only hard masks fit in bits.

    Raises:
        ValueError: the override names an unknown route.
    """
    forced = os.environ.get(OVERRIDE)
    if forced and forced not in ROUTES:
        raise ValueError(f"{OVERRIDE}: unknown route '{forced}'; known are: {', '.join(ROUTES)}")
    hard = estimator.startswith("straight_through")
    if forced and (hard or forced != "bits"):
        return forced
    if dtype == torch.float32 and precision(dtype) != "tf32":
        return "in_register" if tokens <= EXACT_TOKENS else "prepass"
    if tokens <= IN_REGISTER_TOKENS:
        return "in_register"
    return "bits" if hard and tokens <= BITS_TOKENS else "prepass"


def table() -> str:
    """The rule as text, for hard masks: the route by the number of tokens and the dtype."""
    tokens = (1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 16384)
    lines = [f"{'tokens':>8}  {'16 bits':<12}float32"]
    for m in tokens:
        half, full = (choose(m, dtype, "straight_through") for dtype in (torch.bfloat16, torch.float32))
        lines.append(f"{m:>8}  {half:<12}{full}")
    return "\n".join([*lines, f"override: {OVERRIDE}={os.environ.get(OVERRIDE) or '(unset)'}"])
