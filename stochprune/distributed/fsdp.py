"""FSDP2: shard a masked model so that mixed precision does not reach the logits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from stochprune.arguments import checked
from stochprune.nn.add_lora import updated_layers
from stochprune.nn.layer import MaskedLayer
from stochprune.nn.members import layers_of


@checked
def shard(
    model: nn.Module,
    blocks: Iterable[nn.Module] = (),
    *,
    mesh: DeviceMesh | None = None,
    param_dtype: torch.dtype | None = None,
    reduce_dtype: torch.dtype | None = None,
    reshard_after_forward: bool | None = None,
    offload_policy: OffloadPolicy | None = None,
) -> nn.Module:
    """Shard a masked model over processes with FSDP2 (``torch.distributed.fsdp.fully_shard``), in place.

    The logits of each block are gathered in a group of their own, in their own dtype, so ``param_dtype`` casts the
    weights only. In a narrower dtype most thresholds would change, and the masks with them: so a model that
    ``fully_shard`` alone sharded with such a policy raises an error in its first forward pass. The groups also allow
    logits of another dtype than that of trained weights::

        mesh = init_device_mesh("cuda", (8,))
        sp.distributed.shard(model, model.layers, mesh=mesh, param_dtype=torch.bfloat16)
        optimizer = torch.optim.AdamW(sp.parameter_groups(model, lr=1e-5))  # after sharding

    Args:
        model: from :func:`stochprune.convert`, and from ``parallelize_module`` where tensor parallelism is wanted too.
        blocks: modules of the model that are gathered and freed one after the other, such as the layers of a
            transformer. The rest of the model is one more block.
        mesh: as for ``fully_shard``; default: all processes.
        param_dtype, reduce_dtype: of ``torch.distributed.fsdp.MixedPrecisionPolicy``; for the logits neither is used.
        reshard_after_forward, offload_policy: as for ``fully_shard``.

    Returns:
        The model.

    Raises:
        TypeError: an argument of another type.
        ValueError: no masked layer, blocks that are no parts of the model, lie inside each other, are masked layers
            themselves or share logits, a dtype that is not floating, or a model that is sharded already.
    """
    layers = layers_of("shard", model)
    for name, dtype in (("param_dtype", param_dtype), ("reduce_dtype", reduce_dtype)):
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"shard: {name} must be a floating dtype such as torch.bfloat16, got {dtype}")
    parts = [*dict.fromkeys(blocks)]
    _check(model, parts)
    options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": reshard_after_forward}
    if offload_policy is not None:
        options["offload_policy"] = offload_policy
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=reduce_dtype)
    logits = {cast(nn.Parameter, layer.mask_logits) for layer in layers.values()}
    free: set[nn.Module] = {*layers.values()}
    for block in [*parts, model]:
        inside: list[nn.Module] = [module for module in block.modules() if module in free]
        free.difference_update(inside)
        # The block first: fully_shard passes over layers that are sharded already, and over their weights too.
        fully_shard(block, mp_policy=policy, ignored_params=logits, **options)
        if inside:
            _shard_logits(inside, options)
    rank = dist.get_rank() if mesh is None else mesh.mesh.flatten().tolist().index(dist.get_rank())
    for layer in updated_layers(model).values():
        if layer.mask_rank is None:
            layer.mask_rank = rank  # each process drops activations of its own
    return model


def _check(model: nn.Module, blocks: list[nn.Module]) -> None:
    names = {module: name for name, module in model.named_modules()}
    if strange := [type(block).__name__ for block in blocks if block not in names or block is model]:
        raise ValueError(f"shard: blocks must be modules inside the model, got {', '.join(strange)}")
    if ready := [name or type(model).__name__ for module, name in names.items() if isinstance(module, FSDPModule)]:
        raise ValueError(f"shard: {', '.join(ready)} must not be sharded already: call shard once, on a whole model")
    if masked := [block for block in [*blocks, model] if isinstance(block, MaskedLayer)]:
        kind = type(masked[0]).__name__
        raise ValueError(f"shard: a block must be a module around masked layers, got a {kind}: give its parent")
    seen: dict[nn.Module, nn.Module] = {}
    owner: dict[int, str] = {}  # the block of each tensor of logits
    for block in blocks:
        for module in block.modules():
            if module is not block and module in blocks:
                raise ValueError(f"shard: blocks must not contain each other, but {names[block]} has {names[module]}")
    for block in [*blocks, model]:
        for layer in block.modules():
            if not isinstance(layer, MaskedLayer) or seen.setdefault(layer, block) is not block:
                continue
            name, first = names[layer], owner.setdefault(id(layer.mask_logits), names[block])
            if first != names[block]:
                raise ValueError(
                    f"shard: {name} shares its logits with a layer of another block, {first or 'the model'}: leave "
                    f"both in the rest of the model"
                )


def _shard_logits(layers: list[nn.Module], options: dict[str, Any]) -> None:
    """Make one group of the logits of these layers; a mixed precision policy that does nothing keeps their dtype."""
    others = {p for layer in layers for p in layer.parameters() if p is not layer.mask_logits}
    fully_shard(layers, ignored_params=others, **options)
