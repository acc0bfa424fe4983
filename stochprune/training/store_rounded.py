"""Rounded values for the part of a parameter that this process holds."""

from __future__ import annotations

from torch import Tensor

from stochprune.functional import stochastic_round
from stochprune.shards import Shard


def store_rounded(wide: Tensor, shard: Shard, *, seed: int, draw: int, stream: int) -> None:
    """Store float32 values of the shard's shape in its bfloat16 tensor, rounded by the bits of their addresses."""
    if wide.numel():  # a shard may be empty
        matrix = wide.reshape(shard.rows, -1)
        at = {"row_offset": shard.row, "col_offset": shard.col}
        shard.tensor.copy_(stochastic_round(matrix, seed=seed, draw=draw, stream=stream, **at).view(wide.shape))
