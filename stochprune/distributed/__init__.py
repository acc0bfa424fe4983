"""Masks under PyTorch's own distribution: FSDP2, tensor parallelism and DDP (docs/distributed.md)."""

from stochprune.distributed.fsdp import shard
from stochprune.distributed.hardened import hardened_state, save_hardened
from stochprune.distributed.own_masks import own_dropout, own_masks
from stochprune.distributed.shrunk import shrink
from stochprune.distributed.tensor_parallel import MaskedColwiseParallel, MaskedRowwiseParallel

__all__ = [
    "MaskedColwiseParallel",
    "MaskedRowwiseParallel",
    "hardened_state",
    "own_dropout",
    "own_masks",
    "save_hardened",
    "shard",
    "shrink",
]
