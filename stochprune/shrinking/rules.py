"""Rules for torch functions other than products: they carry units, constants and needs to the results.

A rule takes the flow and the call and returns the values of the results, and a function that carries needs from the
results back to the arguments. It returns None for a call that it does not cover.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from stochprune.shrinking.flow import Flow, Result, Value, compact, vary
from stochprune.shrinking.recorder import Call, tensors_in

DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}


def constants(flow: Flow, call: Call) -> Result | None:
    like = next(iter(tensors_in((call.args, call.kwargs))), None)
    if like is not None and not ("like" in call.name or call.name.startswith("new")):
        return None
    # The shape may come from a tensor with units, as in zeros_like(x): the units are the same.
    labels = torch.zeros((), dtype=torch.int64, device=call.out.device)
    if like is not None and like.shape == call.out.shape:
        labels = flow.value(like).labels
    return [flow.made(call.out, labels, torch.ones((), dtype=torch.bool, device=call.out.device))], None


def elementwise(flow: Flow, call: Call) -> Result | None:
    if call.name in DROPOUTS and (call.kwargs.get("training") or True in call.args[2:]):
        return None
    if not isinstance(call.out, Tensor):
        return None
    shape = call.out.shape
    inputs = tensors_in((call.args, call.kwargs))
    if call.name in ("to", "type_as"):
        inputs = inputs[:1]
    values = [flow.value(tensor) for tensor in inputs]
    full = [v for v in values if v.labels.shape == shape]
    # Of operands with all elements of the result, one with units is the base.
    base = max(full, key=lambda v: bool(compact(v.labels).any()), default=None)
    if base is None:
        for value in values:
            flow.lock(value.labels, f"is broadcast against another dimension by {call.where}")
        labels = torch.zeros((), dtype=torch.int64, device=call.out.device).expand(shape)
    else:
        labels = base.labels
        for value in values:
            if value is not base and (value.labels.numel() > 1 or bool(value.labels.any())):
                _join(flow, labels, value.labels, call)
    known = torch.ones((), dtype=torch.bool, device=call.out.device)
    for value in values:
        known = known & value.known
    if call.name in ("mul", "multiply"):
        for value in values:
            known = known | (value.known & (value.data == 0))
    out = flow.made(call.out, labels, known)

    def pull() -> None:
        live = out.live
        for value in values:
            value.needed |= _reduced(live, value.needed.shape)

    return [out], pull


def _join(flow: Flow, labels: Tensor, other: Tensor, call: Call) -> None:
    """Unite the units of the base with those of another operand, which may be broadcast."""
    padded = other[(None,) * (labels.dim() - other.dim())]
    stretched = [d for d in range(labels.dim()) if padded.shape[d] == 1 < labels.shape[d]]
    if vary(labels, stretched):
        flow.lock(other, f"is broadcast over other units by {call.where}")
    else:
        flow.unite(labels, padded)


def _reduced(live: Tensor, shape: torch.Size) -> Tensor:
    """Return which elements of a tensor that was broadcast to ``live`` have a live element."""
    return live if live.shape == shape else live.to(torch.int32).sum_to_size(shape) > 0


def movement(flow: Flow, call: Call) -> Result | None:
    """Carry labels and constants by the function itself."""
    if not call.args:
        return None
    moved = tensors_in(call.args[0])
    values = [flow.value(tensor) for tensor in moved]
    others = tensors_in((call.args[1:], call.kwargs))
    if not call.name.endswith("_as") and not all(bool(flow.value(t).known.all()) for t in others):
        return None
    labels = moved_by(call, [value.labels for value in values])
    known = moved_by(call, [value.known for value in values])
    results = tensors_in(call.out)
    outs = [flow.made(t, of_label, of_known) for t, of_label, of_known in zip(results, labels, known, strict=True)]
    flow.moves[len(flow.calls) - 1] = values

    def pull() -> None:
        ids = element_ids(values)
        flat = torch.zeros(sum(each.numel() for each in ids), dtype=torch.bool, device=results[0].device)
        for out, source in zip(outs, moved_by(call, ids), strict=True):
            flat[source[out.live]] = True
        for each, value in zip(ids, values, strict=True):
            value.needed |= flat[each]

    return outs, pull


def element_ids(values: list[Value]) -> list[Tensor]:
    """Return another integer for each element of some tensors, int64 of their shapes."""
    starts = [0, *accumulate(value.needed.numel() for value in values)]
    return [
        torch.arange(a, b, device=v.needed.device).reshape(v.needed.shape)
        for a, b, v in zip(starts, starts[1:], values, strict=False)
    ]


def moved_by(call: Call, tensors: list[Tensor]) -> list[Tensor]:
    """Call a function that moves elements on other tensors of the same shapes."""
    first = tensors[0] if isinstance(call.args[0], Tensor) else tensors
    try:
        return tensors_in(call.function(first, *call.args[1:], **call.kwargs))
    except RuntimeError:  # a view of an expanded tensor
        first = first.contiguous() if isinstance(first, Tensor) else first
        return tensors_in(call.function(first, *call.args[1:], **call.kwargs))


def spatial(flow: Flow, call: Call) -> Result | None:
    """Functions of each channel alone: pooling, interpolation, padding. Constants are constant channels."""
    x, out = flow.value(_argument(call, 0, "input")), call.out
    if not isinstance(out, Tensor):
        return None
    leading = min(2, x.needed.dim() - 1)
    if found := re.search(r"(\d)d$", call.name):
        leading = x.needed.dim() - int(found[1])
    elif call.name == "pad":
        leading = x.needed.dim() - len(_argument(call, 1, "pad")) // 2
    dims = range(leading, x.needed.dim())
    if out.shape[:leading] != x.needed.shape[:leading] or vary(x.labels, dims):
        return None
    ones = (1,) * (out.dim() - leading)
    labels = x.labels
    for d in dims:
        labels = labels.narrow(d, 0, 1)
    known = x.known.flatten(leading).all(-1).reshape(*out.shape[:leading], *ones)
    result = flow.made(out, labels, known)

    def pull() -> None:
        x.needed |= result.live.flatten(leading).any(-1).reshape(*out.shape[:leading], *ones)

    return [result], pull


def reduction(flow: Flow, call: Call) -> Result | None:
    x = flow.value(_argument(call, 0, "input"))
    dims = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim")
    keep = call.args[2] if len(call.args) > 2 else call.kwargs.get("keepdim", False)
    if dims is None:
        dims, keep = range(x.needed.dim()), False
    if isinstance(dims, int):
        dims = (dims,)
    dims = sorted(d % x.needed.dim() for d in dims)
    if vary(x.labels, dims):
        return None
    labels, known = x.labels, x.known
    if "axis" in call.kwargs or not isinstance(call.out, Tensor):
        return None
    for d in reversed(dims):
        labels, known = labels.narrow(d, 0, 1), known.all(d, keepdim=True)
        if not keep:
            labels, known = labels.squeeze(d), known.squeeze(d)
    out = flow.made(call.out, labels, known)

    def pull() -> None:
        live = out.live
        for d in [] if keep else dims:
            live = live.unsqueeze(d)
        x.needed |= live

    return [out], pull


def softmax(flow: Flow, call: Call) -> Result | None:
    dim = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim")
    return None if dim is None else _coupled(flow, call, [dim % call.out.dim()])


def layer_norm(flow: Flow, call: Call) -> Result | None:
    return _coupled(
        flow, call, list(range(call.out.dim() - len(_argument(call, 1, "normalized_shape")), call.out.dim()))
    )


def _coupled(flow: Flow, call: Call, dims: list[int]) -> Result | None:
    """Functions of all elements along some dimensions together: units along them stay."""
    x, *others = [flow.value(tensor) for tensor in tensors_in((call.args, call.kwargs))]
    if vary(x.labels, dims):
        flow.lock(x.labels, f"is normalised together with others by {call.where}")
    for other in others:  # the weight and the bias
        flow.lock(other.labels, f"belongs to {call.where}")
    known = x.known
    for d in dims:
        known = known.all(d, keepdim=True)
    out = flow.made(call.out, x.labels, known)

    def pull() -> None:
        live = out.live
        for d in dims:
            live = live.any(d, keepdim=True)
        x.needed |= live

    return [out], pull


def channels(flow: Flow, call: Call) -> Result | None:
    """Normalisations of each channel, and PReLU: their parameters have one element for each channel."""
    x, *params = tensors_in((call.args, call.kwargs))
    if call.name == "batch_norm" and (call.kwargs.get("training") or call.args[5:6] == (True,)):
        return None
    if call.name == "prelu" and params[0].numel() == 1:
        return elementwise(flow, call)
    value = flow.value(x)
    axis = 1 if x.dim() > 1 else 0
    if not all(flow.is_state(p) and p.shape == x.shape[axis : axis + 1] for p in params):
        return None
    units = flow.along(value.labels, axis)
    for param in params:
        flow.unite(flow.dim(param, 0), units)
    # The elements that are normalised together: [B, groups, ...].
    groups = {"group_norm": lambda: _argument(call, 1, "num_groups"), "instance_norm": lambda: x.shape[1]}
    if (grouping := groups.get(call.name)) is None:
        known, count = value.known, 0
    else:
        count = grouping()
        known = value.known.reshape(len(x), count, -1).all(-1, keepdim=True)
        known = known.expand(len(x), count, x[0].numel() // count).reshape(x.shape)
    if call.name == "group_norm":
        of_group = units.reshape(count, -1)
        flow.unite(of_group, of_group[:, :1])
        flow.counted(call, "num_groups", of_group[:, 0])
    for attribute in ("num_features", "num_channels"):
        if hasattr(flow.model.get_submodule(call.module), attribute):
            flow.counted(call, attribute, units)
    out = flow.made(call.out, value.labels, known)

    def pull() -> None:
        live = out.live
        if count:
            live = live.reshape(len(x), count, -1).any(-1, keepdim=True)
            live = live.expand(len(x), count, x[0].numel() // count).reshape(x.shape)
        value.needed |= live

    return [out], pull


def _argument(call: Call, position: int, name: str) -> Any:
    return call.args[position] if len(call.args) > position else call.kwargs[name]


def embedding(flow: Flow, call: Call) -> Result | None:
    ids, weight = flow.value(_argument(call, 0, "input")), _argument(call, 1, "weight")
    if not flow.is_state(weight):
        return None
    units = flow.dim(weight, 1)
    flow.tables.add(id(weight))
    out = flow.made(call.out, units, (weight == weight[:1]).all(0))
    flow.origins.append((call.module, units, out))

    def pull() -> None:
        if bool(out.live.any()):
            ids.needed.fill_(True)

    return [out], pull
