"""The rule that chooses how a masked convolution is computed, from the estimates of :mod:`.routes`.

- in_register: one launch for all draws; each tile of tokens samples the masks of its filters.
- prepass: temporary masked filters, then cuDNN. All draws share the launches if each has one example, in a convolution
  with as many groups; otherwise each draw has launches of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stochprune.address import Mask

from .philox import GROUP
from .routes import Product, constants, forced

GATHER = 1.6
"""Instructions for a weight of a main loop that gathers x under the kernel positions (36), relative to one that reads a
matrix (22.5): tiles of 128 x 128 in bf16 with float32 weights, compiled for sm_90."""
GROUPED = 2
"""Estimated time of masked filters and one convolution with a group for each draw, relative to a product per draw."""
MOST_TOKENS = 1 << 30
"""Tokens of a draw whose numbers have 32 bits in the kernel."""


def in_register(shape: Sequence[int], x: Tensor, weight: Tensor, logits: Tensor, mask: Mask) -> bool:
    """Return True if the masks should be sampled in the main loop.

    Args:
        shape: of the result, [(D,) M, N, *T].
        x, weight, logits: of the convolution; their dtypes, and the number of columns, are used.

    Raises:
        ValueError: the environment names an unknown route.
    """
    route, draws = forced(), len(mask.draw)
    examples, rows, *sizes = shape[int(draws > 1) :]
    tokens = examples * math.prod(sizes)
    if mask.col % GROUP.value or tokens > MOST_TOKENS:
        return False
    if route:
        return route == "in_register"
    found = seconds(
        Product(draws, tokens, rows, weight[0].numel(), x.dtype, weight.dtype, logits.dtype), examples, x.device
    )
    return found["in_register"] < found["prepass"]


def seconds(product: Product, examples: int, device: torch.device) -> dict[str, float]:
    """Return the estimated seconds of each way to compute a convolution, given as a product of ``examples`` a draw."""
    found = product.seconds(device)
    each = found["prepass"] + 2 * (product.draws - 1) * constants(device).launch
    prepass = GROUPED * found["prepass"] if examples == 1 < product.draws else each
    return {"in_register": GATHER * found["in_register"], "prepass": prepass}
