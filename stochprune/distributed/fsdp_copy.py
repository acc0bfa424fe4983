"""Copies of modules that FSDP2 splits, which it cannot make itself: plain ones, to be changed and split again.

``fully_shard`` changes a module's class and gives it hooks and a state. A plain copy has the class from before, and
none of these. The options of ``fully_shard`` are read from the state, which torch keeps to itself.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from stochprune.shards import is_dtensor

_MARKS = ("_is_fsdp_managed_module", "_fsdp_use_orig_params", "__composable_api_state_key")


def groups(model: nn.Module) -> list[list[nn.Module]]:
    """Return the modules that calls of ``fully_shard`` split, one list for each call, outer modules first."""
    found: dict[Any, list[nn.Module]] = {}
    for module in model.modules():
        if isinstance(module, FSDPModule):
            found.setdefault(module._get_fsdp_state(), []).append(module)
    return [*found.values()]


def mesh_of(module: nn.Module) -> DeviceMesh | None:
    """Return the mesh over which ``fully_shard`` splits the module's own group; None if that has no parameters."""
    group = _state(module)._fsdp_param_group
    return None if group is None else group.mesh_info.mesh


def param_dtype(module: nn.Module) -> torch.dtype | None:
    """Return the dtype that the module's mixed precision policy casts its parameters to."""
    return _state(module)._mp_policy.param_dtype


def plain_copy(
    module: nn.Module, whole: Callable[[Tensor], Tensor], given: Mapping[nn.Module, nn.Module] | None = None
) -> nn.Module:
    """Return a copy of a module that is not split, nor any module in it.

    Args:
        module: with parameters that are parts (after ``reshard``).
        whole: returns what takes the place of a split parameter.
        given: what takes the place of modules inside; they are not changed.
    """
    given = {} if given is None else given
    memo: dict[int, Any] = {id(old): new for old, new in given.items()}
    memo |= {id(state): state for state in (_state(each[0]) for each in groups(module))}
    for parameter in filter(is_dtensor, module.parameters()):
        memo[id(parameter)] = nn.Parameter(whole(parameter.detach()), requires_grad=parameter.requires_grad)
    with _classes_from_before(module):
        copied = copy.deepcopy(module, memo)
    left = {part for new in given.values() for part in new.modules()}
    for part in copied.modules():
        if part not in left:
            _unmark(part)
    return copied


def split_like(plain: nn.Module, split: nn.Module, mesh: DeviceMesh) -> None:
    """Split a plain module, in place, as another one is whose modules have the same names; some may be missing.

    Args:
        plain: its parts that are split already stay as they are.
        mesh: of modules without parameters of their own, whose mesh is not known.
    """
    names = {module: name for name, module in split.named_modules()}
    twins, parameters = dict(plain.named_modules()), dict(plain.named_parameters())
    ignored: set[nn.Parameter] = set()
    placements: dict[nn.Parameter, Any] = {}
    for name, old in split.named_parameters():
        new = parameters.get(name)
        if new is not None and not is_dtensor(old):
            ignored.add(new)
        elif new is not None and is_dtensor(old) and new.shape == old.shape:
            placements[new] = old.placements[-1]
    for modules in reversed(groups(split)):  # inner ones first
        found = [twins[names[module]] for module in modules if names[module] in twins]
        found = [twin for twin in found if not isinstance(twin, FSDPModule) and any(True for _ in twin.parameters())]
        if found:
            options = _options(modules[0], mesh)
            fully_shard(found, ignored_params=ignored, shard_placement_fn=placements.get, **options)


def _state(module: Any) -> Any:
    return module._get_fsdp_state()


def _options(module: nn.Module, mesh: DeviceMesh) -> dict[str, Any]:
    """Return the options of ``fully_shard`` that split the module."""
    state = _state(module)
    group, options = state._fsdp_param_group, {"mp_policy": state._mp_policy}
    if group is None:
        return {**options, "mesh": mesh}
    after = group.post_forward_mesh_info
    reshard: bool | int = after is not None
    if reshard and after != group.mesh_info:
        reshard = after.shard_mesh_size
    options |= {"mesh": group.mesh_info.mesh, "offload_policy": group.offload_policy}
    return {**options, "reshard_after_forward": reshard}


@contextlib.contextmanager
def _classes_from_before(model: nn.Module) -> Iterator[None]:
    """Give the modules the classes that they had before ``fully_shard``, whose own refuse to be copied."""
    kinds = {module: type(module) for module in model.modules() if isinstance(module, FSDPModule)}
    for module, kind in kinds.items():
        module.__class__ = kind.__mro__[2]  # FSDPLinear, FSDPModule, Linear, ...
    try:
        yield
    finally:
        for module, kind in kinds.items():
            module.__class__ = kind


def _unmark(module: nn.Module) -> None:
    """Remove from a copy what ``fully_shard`` left in the attributes of the original."""
    attributes = vars(module)
    for name in [name for name in attributes if name.startswith(_MARKS)]:
        del attributes[name]
    for hooks in [value for name, value in attributes.items() if name.endswith("_hooks") and value]:
        for key, hook in [*hooks.items()]:
            function = getattr(hook, "hook", hook)  # hooks of state dicts are wrapped
            if getattr(function, "__module__", "").startswith("torch.distributed.fsdp"):
                del hooks[key]
