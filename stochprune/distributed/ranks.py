"""Data parallelism: the same masks in all processes, or masks of its own in each."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn

from stochprune.arguments import checked
from stochprune.nn.mask_source import MaskSource


@checked
def own_masks(model: nn.Module, enabled: bool = True, *, group: dist.ProcessGroup | None = None) -> nn.Module:
    """Let each process of a group sample masks of its own, or (``enabled=False``) all of them the same masks.

    All processes sample the same masks unless this is called. With masks of its own in each of R processes, a step
    averages the gradient over R masks instead of one, at no cost::

        model = DistributedDataParallel(sp.distributed.own_masks(model))  # or sp.distributed.shard(...)

    A forward pass at counter c uses draw c + r in process r, and the counter advances by R. So the masks are those of
    ``batched_samples(model, R)`` in one process whose batch has the processes' shares as its parts. The counter is the
    same in all processes: a checkpoint of any of them serves all, also for another number of processes, and no draw is
    used twice. The switch is not in the checkpoint; call this again when a run is resumed. In evaluation mode all
    processes sample the same masks, so that what they measure or certify is one network.

    Args:
        model: from :func:`stochprune.convert`, before or after it is wrapped.
        enabled: False switches back.
        group: the processes that split a batch among them; default: all. Beside tensor parallelism it is the group of
            the data-parallel dimension (``mesh.get_group("dp")``), because the parts of one layer need one mask.

    Returns:
        The model.

    Raises:
        TypeError: an argument of another type.
        ValueError: no masked layer, or no process group where masks of its own are wanted.
    """
    sources = [module for module in model.modules() if isinstance(module, MaskSource)]
    if not sources:
        raise ValueError(f"own_masks: {type(model).__name__} has no masked layer: stochprune.convert makes them")
    if enabled and not dist.is_initialized():
        raise ValueError("own_masks: there is no process group: call torch.distributed.init_process_group before")
    for source in sources:
        source.mask_ranks = dist.get_world_size(group) if enabled else 1
        source.mask_rank = dist.get_rank(group) if enabled else 0
    return model
