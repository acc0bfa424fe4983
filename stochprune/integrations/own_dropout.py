"""The dropout of layers with a low-rank update, in trainings of other libraries in several processes."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn

from stochprune.nn.add_lora import updated_layers


def own_dropout(model: nn.Module, *, tensor_parallel: bool) -> None:
    """Let each process drop activations of its own, see :func:`stochprune.distributed.own_dropout`.

    Nothing changes in one process, where the processes share their activations (``tensor_parallel``), or where somebody
    has numbered the layers before.
    """
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if several and not tensor_parallel and any(layer.mask_rank is None for layer in updated_layers(model).values()):
        from stochprune import distributed  # here: the import takes long

        distributed.own_dropout(model)
