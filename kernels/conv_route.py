"""The rule that chooses how a masked convolution is computed, from the estimates of :mod:`.routes`.

- in_register, thresholds: one launch for all draws; each tile of tokens samples the masks of its filters.
- prepass: temporary masked filters, then cuDNN. All draws share the launches if each has one example, in a convolution
  with as many groups; otherwise each draw has launches of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from stochprune.address import Mask
from stochprune.memory_format import suggests_channels_last

from .estimators import hard
from .philox import GROUP
from .routes import Product, constants, forced

GATHER = 0.5e-12
"""Estimated seconds to read an element of x under a kernel position, for a tile of rows: 13 instructions."""
ROWS = 128
"""Rows of the widest tile."""
GROUPED = 4
"""Estimated time of masked filters and one convolution with a group for each draw, relative to a product per draw."""
SPILLS = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)
"""Triton 3.6 spills registers where a tile has more than 64 tokens, so its tiles are half as wide."""
MOST_TOKENS = 1 << 30
"""Tokens of a draw whose numbers have 32 bits in the kernel."""


def choose(shape: Sequence[int], x: Tensor, weight: Tensor, logits: Tensor, mask: Mask, formed: bool) -> str:
    """Return the route of a convolution.

    Args:
        shape: of the result, [(D,) M, N, *T].
        x, weight, logits: of the convolution; their dtypes, and the number of columns, are used.
        formed: whether the thresholds are cached.

    Raises:
        ValueError: the environment names an unknown route.
    """
    wanted, draws = forced(), len(mask.draw)
    examples, rows, *sizes = shape[int(draws > 1) :]
    tokens = examples * math.prod(sizes)
    if mask.col % GROUP.value or tokens > MOST_TOKENS:
        return "prepass"
    dtypes = (x.dtype, weight.dtype, logits.dtype)
    product = Product(draws, tokens, rows, weight[0].numel(), *dtypes, formed=formed)
    found = seconds(product, examples, x.device)
    if not hard(mask.estimator):
        del found["thresholds"]
    if wanted in found:
        return wanted
    return min(found, key=lambda route: found[route])


def seconds(product: Product, examples: int, device: torch.device) -> dict[str, float]:
    """Return the estimated seconds of each route of a convolution, given as a product of ``examples`` a draw."""
    found = product.seconds(device)
    each = found["prepass"] + 2 * (product.draws - 1) * constants(device).launch
    gathered = product.draws * product.tokens * product.cols * triton.cdiv(product.rows, ROWS)
    passes = 2 if SPILLS else 1
    return {
        "in_register": passes * (found["in_register"] + GATHER * gathered),
        "thresholds": passes * (found["thresholds"] + GATHER * gathered),
        "prepass": GROUPED * found["prepass"] if examples == 1 < product.draws else each,
    }


def result_format(x: Tensor, weight: Tensor, draws: int) -> torch.memory_format:
    """Return the result's memory format: of one draw as in torch, by those of x and the weight; else contiguous."""
    last = draws == 1 and weight.dim() == 4 and any(suggests_channels_last(t) for t in (x, weight))
    return torch.channels_last if last else torch.contiguous_format
