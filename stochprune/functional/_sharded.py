"""Ops on DTensors: each process runs the op on its part of the weights, at the part's position in the whole one.

DTensor's own rules give all processes equal arguments, so they cannot pass an offset. So the ops of this file work on
the parts, and say how the results belong together: an output of split rows is split along its last dimension, and an
output of split columns is a term of a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from stochprune.shards import Shard, from_part, is_dtensor, layout, like_shard, local_shard, reduced

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Layout = list[Any]
"""A placement for each dimension of the mesh of processes."""


def mask_shards(op: Callable[..., Tensor], values: Tensor, *, row_offset: int = 0, col_offset: int = 0) -> Tensor:
    """Return the mask of a DTensor [N, ...] as a DTensor like it, from ``op`` of a part and its offsets."""
    part = local_shard(values)
    at = {"row_offset": row_offset + part.row, "col_offset": col_offset + part.col}
    return like_shard(op(part.tensor, **at), values)


def kl_shards(op: Callable[..., Tensor], logits: Tensor, prior_logits: Tensor | float) -> Tensor:
    """Return ``op``, a sum over weights, of the whole of a DTensor of logits: a scalar, the same in all processes.

    Args:
        prior_logits: a number, a DTensor that is split like the logits, or the whole tensor.
    """
    part, prior = local_shard(logits), prior_logits
    if isinstance(prior, Tensor) and prior.dim():
        prior = prior.to_local() if is_dtensor(prior) else part.part_of(prior.expand(logits.shape))
    return reduced(op(part.tensor, prior), logits)


def linear_shards(
    op: Callable[..., Tensor], x: Tensor, weights: Sequence[Tensor], bias: Tensor | None, **address: Any
) -> Tensor:
    """Return a linear op of DTensors.

    Args:
        op: a function ``(x, *weights, bias, *, row_offset, col_offset, **address)``.
        x: [..., K], a DTensor. It is gathered or split so that it fits the weights.
        weights: [N, K] each, DTensors that are split alike, each dimension of the mesh along rows, along columns or not
            at all.
        bias: [N] or None.

    Returns:
        [..., N], a DTensor: split along N where rows are split, a term of a sum (Partial) where columns are.

    Raises:
        TypeError, ValueError: tensors that are no DTensors, or that are split in another way.
    """
    from torch.distributed.tensor import Partial, Replicate
    from torch.distributed.tensor import Shard as Split

    name = getattr(op, "__name__", "linear")
    x, weight = _checked(name, x, weights)
    part = local_shard(weight)
    rows: list[Layout] = []  # for each dimension of the mesh the placements of the tensors that are named below
    for split, given in zip(weight.placements, x.placements, strict=True):
        if split == Split(0):
            rows.append([Replicate(), Partial(), split, split, split, Split(-1)])
        elif split == Split(1):  # the bias is added in one process of them
            last = Split(x.dim() - 1)
            rows.append([last, last, split, Replicate(), Partial(), Partial()])
        else:
            kept = given if type(given) is Split and given.dim < x.dim() - 1 else Replicate()
            grads = Replicate() if kept.is_replicate() else Partial()
            rows.append([kept, kept, grads, Replicate(), grads, kept])
    inputs, input_grads, weight_grads, bias_layout, bias_grads, outputs = zip(*rows, strict=True)
    own_x = x.redistribute(placements=inputs).to_local(grad_placements=input_grads)
    own_weights = [_own(each, weight.placements, weight_grads) for each in weights]
    own_bias = None
    if bias is not None:
        if not is_dtensor(bias):
            raise TypeError(f"{name}: bias must be a DTensor as the weight is, got {type(bias).__name__}")
        own_bias = _own(bias, bias_layout, bias_grads)
        coordinates = zip(weight.placements, weight.device_mesh.get_coordinate() or (), strict=True)
        # Multiplied by 0 rather than left out, so that every process takes part in the reduction of its gradient.
        own_bias = own_bias * float(all(where == 0 for split, where in coordinates if split == Split(1)))
    y = op(own_x, *own_weights, own_bias, **_offsets(address, part))
    samples = y.shape[: y.dim() - x.dim()]  # they come first
    moved = [Split(p.dim % x.dim() + len(samples)) if type(p) is Split else p for p in outputs]
    return from_part(y, weight.device_mesh, moved, [*samples, *x.shape[:-1], weight.shape[0]])


def embedding_shards(op: Callable[..., Tensor], indices: Tensor, weights: Sequence[Tensor], **address: Any) -> Tensor:
    """Return an embedding op of DTensors: as :func:`linear_shards`, but rows that others hold are terms of 0.

    Args:
        op: a function ``(indices, *weights, *, padding_idx, row_offset, col_offset, **address)``.
        indices: [...], a DTensor; it is gathered.

    Returns:
        [..., K], a DTensor: split along K where columns are split, a term of a sum where rows are.
    """
    from torch.distributed.tensor import Partial, Replicate
    from torch.distributed.tensor import Shard as Split

    name = getattr(op, "__name__", "embedding")
    indices, weight = _checked(name, indices, weights)
    part, padding = local_shard(weight), address.pop("padding_idx", None)
    outputs: Layout = [Partial() if p == Split(0) else Split(-1) if p == Split(1) else p for p in weight.placements]
    wanted = indices.redistribute(placements=[Replicate()] * len(outputs)).to_local() - part.row
    here = (wanted >= 0) & (wanted < part.rows)
    own = [_own(each, weight.placements, weight.placements) for each in weights]
    if padding is not None:
        padding = padding % weight.shape[0] - part.row
        padding = padding if 0 <= padding < part.rows else None
    if part.rows:
        y = op(wanted.where(here, 0), *own, padding_idx=padding, **_offsets(address, part))
        y = y * here.unsqueeze(-1).to(y.dtype)
    else:  # nothing is held here; the sum keeps the parameters in the graph
        y = sum(each.sum() for each in own) + own[0].new_zeros(*wanted.shape, part.tensor.shape[1])
    whole = [*y.shape[:-1], weight.shape[1]]
    last = [Split(y.dim() - 1) if p == Split(-1) else p for p in outputs]
    return from_part(y, weight.device_mesh, last, whole)


def _checked(name: str, x: Tensor, weights: Sequence[Tensor]) -> tuple[DTensor, DTensor]:
    """Return x and the first weight; raise unless all are DTensors that an op can process."""
    from torch.distributed.tensor import Shard as Split

    first = weights[0]
    if not is_dtensor(x) or not is_dtensor(first) or any(layout(each) != layout(first) for each in weights):
        found = ", ".join(str(getattr(each, "placements", type(each).__name__)) for each in (x, *weights))
        raise TypeError(
            f"{name}: x and all weights must be DTensors, the weights split alike, got {found}: call "
            "stochprune.distributed.MaskedColwiseParallel or MaskedRowwiseParallel in parallelize_module, which make "
            "them so"
        )
    if x.device_mesh != first.device_mesh:
        raise ValueError(f"{name}: x is on {x.device_mesh} and the weight on {first.device_mesh}: use one mesh")
    for split in first.placements:
        if not split.is_replicate() and split not in (Split(0), Split(1)):
            raise ValueError(f"{name}: the weight must be split along rows or columns, got {first.placements}")
    return x, first


def _own(tensor: Tensor, placements: Sequence[Any], grads: Sequence[Any]) -> Tensor:
    """Return this process's part; its gradient has the placements ``grads`` and is brought to those of the tensor."""
    assert is_dtensor(tensor)
    return tensor.redistribute(placements=placements).to_local(grad_placements=grads)


def _offsets(address: dict[str, Any], part: Shard) -> dict[str, Any]:
    row, col = address.get("row_offset", 0), address.get("col_offset", 0)
    return {**address, "row_offset": row + part.row, "col_offset": col + part.col}
