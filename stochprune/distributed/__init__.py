"""Masks under PyTorch's own distribution: tensor parallelism, FSDP2 and DDP (docs/distributed.md)."""

from stochprune.distributed.tensor_parallel import MaskedColwiseParallel, MaskedRowwiseParallel

__all__ = ["MaskedColwiseParallel", "MaskedRowwiseParallel"]
