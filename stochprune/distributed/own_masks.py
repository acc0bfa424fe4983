"""Data parallelism: the masks that all processes share, and what each process samples by itself."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn

from stochprune.arguments import checked
from stochprune.nn.add_lora import updated_layers
from stochprune.nn.members import sources_of


@checked
def own_masks(model: nn.Module, enabled: bool = True, *, group: dist.ProcessGroup | None = None) -> nn.Module:
    """Let each process of a group sample masks of its own, or (``enabled=False``) all of them the same masks.

    All processes sample the same masks unless this is called. With masks of its own in each of R processes, a step
    averages the gradient over R masks instead of one, at no cost::

        model = DistributedDataParallel(sp.distributed.own_masks(model))  # or sp.distributed.shard(...)

    A forward pass at counter c uses draw c + r in process r, and the counter advances by R. So the masks are those of
    ``batched_samples(model, R)`` in one process whose batch has the processes' shares as its parts. The counter is the
    same in all processes: a checkpoint of any of them serves all, also for another number of processes, and no draw is
    used twice. Checkpoints, copies and pickles of the model do not contain the switch; call this again when a run is
    resumed. In evaluation mode all processes sample the same masks, so that what they measure or certify is one
    network.

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
    sources = sources_of("own_masks", model)
    rank = _rank("own_masks", group) if enabled else None
    for source in sources:
        source.mask_ranks = dist.get_world_size(group) if enabled else 1
        source.mask_rank = source.mask_rank if rank is None else rank
    return model


@checked
def own_dropout(model: nn.Module, *, group: dist.ProcessGroup | None = None) -> nn.Module:
    """Let each process of a group drop activations of its own in the layers of :func:`stochprune.nn.add_lora`.

    These layers take the bits of their dropout from the address of the mask. Processes that share masks would drop the
    same entries of different examples, unless each has columns of its own in that address: process r starts at column
    ``r * in_features``. :func:`stochprune.distributed.shard`, :func:`own_masks` and the trainers of this library see to
    it; call this for ``DistributedDataParallel`` and for ``fully_shard``::

        model = DistributedDataParallel(sp.distributed.own_dropout(model))

    Checkpoints, copies and pickles of the model do not contain it; call this again when a run is resumed.

    Args:
        model: a model with such layers, before or after it is wrapped.
        group: as for :func:`own_masks`. The processes of a tensor-parallel group have the same activations, and need
            the same dropout.

    Returns:
        The model.

    Raises:
        TypeError: an argument of another type.
        ValueError: no such layer, or no process group.
    """
    layers = updated_layers(model)
    if not layers:
        raise ValueError(
            f"own_dropout: {type(model).__name__} has no low-rank update: stochprune.nn.add_lora makes them"
        )
    rank = _rank("own_dropout", group)
    for layer in layers.values():
        layer.mask_rank = rank
    return model


def _rank(op: str, group: dist.ProcessGroup | None) -> int:
    if not dist.is_initialized():
        raise ValueError(f"{op}: there is no process group: call torch.distributed.init_process_group before")
    return dist.get_rank(group)
