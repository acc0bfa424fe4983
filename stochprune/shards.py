"""The part of a tensor that this process holds, its position in the whole one, and sums over all parts.

A tensor is whole unless it is a DTensor of ``torch.distributed.tensor``, as FSDP2 and tensor parallelism make them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs

Name = TypeVar("Name")
_PLAIN = (Tensor, nn.Parameter)


class Shard(NamedTuple):
    """A tensor [rows, ...] and the address of its first element; trailing dimensions count as columns."""

    tensor: Tensor
    rows: int
    row: int = 0
    col: int = 0

    def part_of(self, whole: Tensor) -> Tensor:
        """Return the part of a tensor [N, K, ...] at this shard's position."""
        rest = math.prod(whole.shape[2:])
        rows = whole[self.row : self.row + self.rows]
        return rows if whole.dim() < 2 else rows[:, self.col // rest :][:, : self.tensor.shape[1]]


def is_dtensor(tensor: Any) -> TypeIs[DTensor]:
    """Return True for a DTensor; its module is not imported here, because the import takes long."""
    if type(tensor) in _PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_managed(module: nn.Module) -> bool:
    """Return True if FSDP manages a module: its parameters are parts, but whole for a while around its forward pass."""
    return bool(getattr(module, "_is_fsdp_managed_module", False))


def refuse_managed(op: str, modules: Mapping[str, nn.Module], way_out: str) -> None:
    """Raise ``ValueError`` if FSDP manages one of these modules by name, which ``op`` would exchange for others."""
    if managed := [name or type(module).__name__ for name, module in modules.items() if is_managed(module)]:
        raise ValueError(f"{op}: {managed[0]} is sharded by FSDP, which cannot exchange layers: {way_out}")


def is_split(module: nn.Module) -> bool:
    """Return True if FSDP manages a module, or if a parameter of its own is a part."""
    return is_managed(module) or any(map(is_dtensor, module.parameters(recurse=False)))


def local_shard(tensor: Tensor) -> Shard:
    """Return the part of a tensor on this process: the tensor itself unless it is a DTensor.

    Raises:
        ValueError: a DTensor that is split along its third dimension or a later one, whose part is no block of columns.
    """
    if not is_dtensor(tensor):
        return Shard(tensor, len(tensor) if tensor.dim() else 1)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    local = tensor.to_local()
    _, first = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    if local.shape[2:] != tensor.shape[2:]:
        shape = tuple(tensor.shape)
        raise ValueError(f"a parameter {shape} is split by {tensor.placements}: split dimension 0 or 1 of its weights")
    row, col = (*first, 0, 0)[:2]
    return Shard(local, len(local) if local.dim() else 1, row, col * math.prod(tensor.shape[2:]))


def layout(tensor: Tensor) -> object:
    """Return a key that is equal for tensors that are split alike; None for a whole tensor."""
    return (tensor.device_mesh, tensor.placements) if is_dtensor(tensor) else None


def like_shard(local: Tensor, tensor: Tensor) -> Tensor:
    """Return this process's part of a result as a DTensor of the shape and the layout of ``tensor``; whole: as it is.

    It is differentiable.
    """
    if not is_dtensor(tensor):
        return local
    return from_part(local, tensor.device_mesh, tensor.placements, tensor.shape)


def from_part(local: Tensor, mesh: DeviceMesh, placements: Sequence[Any], shape: Sequence[int]) -> Tensor:
    """Return this process's part as a DTensor of a shape that need not divide evenly; it is differentiable."""
    from torch.distributed.tensor import DTensor

    stride = torch.empty(shape, device="meta").stride()
    at: dict[str, Any] = {"run_check": False, "shape": torch.Size(shape), "stride": stride}
    return DTensor.from_local(local, mesh, placements, **at)


def by_shard(function: Callable[..., Tensor], tensor: Tensor, *others: Tensor) -> Tensor:
    """Return ``function`` of the parts of tensors that are split alike; it works on each element or row by itself."""
    if not is_dtensor(tensor):
        return function(tensor, *others)
    parts = [each.to_local() if is_dtensor(each) else each for each in (tensor, *others)]
    return like_shard(function(*parts), tensor)


def by_rows(function: Callable[..., Tensor], tensor: Tensor, *others: Tensor) -> Tensor:
    """Return ``function`` of tensors [N, ...] that are split alike; it works on each row by itself.

    Where rows are split, the tensors are gathered for it.
    """
    if not is_dtensor(tensor) or tensor.to_local().shape[1:] == tensor.shape[1:]:
        return by_shard(function, tensor, *others)
    return split_like(function(*(gathered(each) for each in (tensor, *others))), tensor)


def split_like(whole: Tensor, tensor: Tensor) -> Tensor:
    """Return a whole tensor, which every process has, split as ``tensor`` of its shape is."""
    return like_shard(local_shard(tensor).part_of(whole).contiguous(), tensor) if is_dtensor(tensor) else whole


def gathered(tensor: Tensor) -> Tensor:
    """Return the whole tensor, in every process."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def reduced(values: Tensor, tensor: Tensor, op: Any = None) -> Tensor:
    """Return values that each process has of its part of ``tensor``, reduced over the parts; every process gets them.

    Args:
        values: any shape, the same in all processes.
        tensor: what they were computed from; the values of a whole tensor are returned as they are.
        op: of ``torch.distributed.ReduceOp``; default: the sum, which is differentiable.
    """
    if not is_dtensor(tensor):
        return values
    return _Reduced.apply(values, _groups(tensor), op or dist.ReduceOp.SUM)


def sum_by_layout(function: Callable[[Sequence[Tensor]], Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of ``function`` over all parts of all tensors, on the device of the first; differentiable.

    Args:
        function: of this process's parts of tensors that are split alike; it returns a sum over their elements. It is
            called, and its value sent, once for each layout.
    """
    groups = by_layout(tensors)
    terms = [reduced(function([local_shard(each).tensor for each in group]), group[0]) for group in groups]
    return terms[0] if len(terms) == 1 else torch.stack([term.to(tensors[0].device) for term in terms]).sum(0)


def by_layout(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the tensors in groups that are split alike."""
    return [[tensors[i] for i in group] for group in names_by_layout(dict(enumerate(tensors)))]


def names_by_layout(tensors: Mapping[Name, Tensor]) -> list[list[Name]]:
    """Return the names of tensors in groups that are split alike."""
    alike: dict[object, list[Name]] = {}
    for name, tensor in tensors.items():
        alike.setdefault(layout(tensor), []).append(name)
    return [*alike.values()]


class _Reduced(torch.autograd.Function):
    """A sum over processes of which each uses the whole result, so that a part's gradient is that of the result."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, groups: list[dist.ProcessGroup], op: Any) -> Tensor:
        total = values.clone()
        for group in groups:
            dist.all_reduce(total, op, group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


def _groups(tensor: DTensor) -> list[dist.ProcessGroup]:
    """Return the groups of processes among which the parts of a DTensor lie."""
    split = [i for i, placement in enumerate(tensor.placements) if not placement.is_replicate()]
    return [tensor.device_mesh.get_group(i) for i in split]
