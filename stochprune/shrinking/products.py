"""The rules of products: of activations with a weight, which mix units, and of activations with each other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stochprune.shrinking.flow import Flow, Mixing, Result, Value, compact
from stochprune.shrinking.recorder import Call


def linear(flow: Flow, call: Call) -> Result | None:
    x, weight, *rest = _arguments(call, "input", "weight", "bias")
    return _mixing(flow, call, x, weight, rest[0], axis=-1)


def matmul(flow: Flow, call: Call) -> Result | None:
    left, right = call.args[:2]
    if flow.is_state(right) and right.dim() == 2:  # x @ weight
        return _mixing(flow, call, left, right, None, axis=-1, transposed=True)
    return attention(flow, call)


def addmm(flow: Flow, call: Call) -> Result | None:
    if call.kwargs or len(call.args) != 3:  # factors
        return None
    bias, x, weight = call.args
    return _mixing(flow, call, x, weight, bias, axis=-1, transposed=True) if flow.is_state(weight) else None


def convolution(flow: Flow, call: Call) -> Result | None:
    transposed = "transpose" in call.name
    names = ["input", "weight", "bias", "stride", "padding"]
    names += ["output_padding", "groups", "dilation"] if transposed else ["dilation", "groups"]
    x, weight, bias, *rest = _arguments(call, *names)
    padding, groups = rest[1], rest[names.index("groups") - 3]
    padded = (
        transposed or (padding == "same") or any(p != 0 for p in _tuple(0 if padding in (None, "valid") else padding))
    )
    return _mixing(
        flow, call, x, weight, bias, 1 - weight.dim(), transposed=transposed, padded=padded, groups=groups or 1
    )


def _arguments(call: Call, *names: str) -> list:
    given = dict(zip(names, call.args, strict=False)) | call.kwargs
    return [given.get(name) for name in names]


def _tuple(sizes: object) -> tuple:
    return sizes if isinstance(sizes, tuple) else tuple(sizes) if isinstance(sizes, list) else (sizes,)


def _mixing(
    flow: Flow,
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    axis: int,
    *,
    transposed: bool = False,
    padded: bool = False,
    groups: int = 1,
) -> Result | None:
    """The rule of a product with a weight; ``axis`` counts from the end."""
    if not flow.is_state(weight) or not (bias is None or flow.is_state(bias)) or (transposed and groups > 1):
        return None
    value, out = flow.value(x), call.out
    row, column = (1, 0) if transposed else (0, 1)
    rows, units = flow.dim(weight, row), flow.along(value.labels, axis)
    if groups == 1:
        cols = flow.dim(weight, column)
        flow.unite(units, cols)
    else:
        cols, of_group = units, rows.reshape(groups, -1)
        members = torch.cat([of_group, units.reshape(groups, -1)], 1)
        flow.unite(members, of_group[:, :1])
        flow.counted(call, "groups", of_group[:, 0])
    if bias is not None:
        flow.unite(flow.dim(bias, 0), rows)
    uses = used(weight, row, column, groups)
    trailing = (1,) * (-1 - axis)
    # A channel is known where all its elements are; an output is where all channels are that its weights use.
    unknown = ~_over_channel(value.known, axis, torch.all)
    known = (unknown.double() @ uses.double().T) == 0
    result = flow.made(out, rows.reshape(-1, *trailing), known.reshape(*known.shape, *trailing))
    flow.origins.append((call.module, rows, result))
    flow.mixings.append(
        Mixing(call, weight, bias, row, column, cols, rows, value, result, axis, padded, grouped=groups > 1)
    )

    def pull() -> None:
        live = _over_channel(result.live, axis, torch.any)
        needs = (live.double() @ uses.double()) > 0
        value.needed |= needs.reshape(*needs.shape, *trailing)

    return [result], pull


def used(weight: Tensor, row: int, column: int, groups: int = 1) -> Tensor:
    """Return which outputs use which inputs, bool [N, K]: where any weight between the two is not 0."""
    uses = (weight.detach() != 0).movedim((row, column), (0, 1)).flatten(2).any(2) if weight.dim() > 2 else weight != 0
    uses = uses.T if weight.dim() == 2 and row == 1 else uses
    return uses if groups == 1 else torch.block_diag(*uses.chunk(groups)).bool()


def _over_channel(tensor: Tensor, axis: int, reduce: Callable[..., Tensor]) -> Tensor:
    """Return ``reduce`` over the dimensions after the axis of channels."""
    return reduce(tensor.flatten(axis + 1), -1) if axis < -1 else tensor


def attention(flow: Flow, call: Call) -> Result | None:
    """Scaled dot products and products of activations: each matrix in the batch is one unit.

    In grouped-query attention one of the keys and values is the unit of all heads that use it.
    """
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    scaled = call.name == "scaled_dot_product_attention"
    given = _arguments(call, *names) if scaled else [*call.args[:2], *[None] * 6]
    tensors = [tensor for tensor in given[:3] if tensor is not None]
    mask = given[3]
    batches = {tensor.shape[: -3 if given[7] else -2] for tensor in tensors}
    if min(tensor.dim() for tensor in tensors) < 3 or len(batches) > 1 or given[4]:
        return None
    values = [flow.value(tensor) for tensor in tensors]
    units = values[0].labels[..., :1, :1]  # [..., heads, 1, 1]
    for value in values:
        flow.unite(_each_head(compact(value.labels), units), units)
    if mask is not None:
        values.append(flow.value(mask))
        if mask.dim() > 2 and mask.shape[-3] > 1:
            flow.lock(units, f"has a part of the mask of {call.where}")
    if scaled:
        known = _each_head(_equal_rows(values[2]), units)
    else:
        zero = [(v.known & (v.data == 0)).flatten(-2).all(-1) for v in values]
        both = values[0].known.flatten(-2).all(-1) & values[1].known.flatten(-2).all(-1)
        known = (zero[0] | zero[1] | both)[..., None, None]
    out = flow.made(call.out, units, known)

    def pull() -> None:
        live = out.live.flatten(-2).any(-1)  # [..., heads]
        for value in values[: len(tensors)]:
            value.needed |= live.unflatten(-1, (value.needed.shape[-3], -1)).any(-1)[..., None, None]
        if mask is not None and bool(live.any()):
            values[-1].needed.fill_(True)

    return [out], pull


def _each_head(keys: Tensor, units: Tensor) -> Tensor:
    """Return what is given for each key [..., keys, S, D] for each head of ``units`` [..., heads, 1, 1]."""
    heads = units.shape[-3]
    return keys if keys.shape[-3] == heads else keys.repeat_interleave(heads // keys.shape[-3], -3)


def _equal_rows(value: Value) -> Tensor:
    """Return the features that are known and equal for all tokens: their mean is known, whatever the attention."""
    data = value.data.double()
    equal = (data - data[..., :1, :]).abs().amax(-2, keepdim=True) <= 1e-6 * data.abs().amax(-2, keepdim=True)
    return value.known.all(-2, keepdim=True) & equal
