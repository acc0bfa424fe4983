"""The plan of the units to remove: groups that must be removed together, and the conditions of each group."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from stochprune.shrinking.flow import Flow, Mixing, Value, compact, locations
from stochprune.shrinking.products import used


@dataclass(eq=False)
class Plan:
    """The units of a flow that can go, as bool ``removed`` by label, after all that keeps some of them.

    Attributes:
        group: int64 by label, the smallest label of its group.
        removed: bool by label.
        reasons: by group, the first reason why it stays.
    """

    flow: Flow
    group: Tensor = field(init=False)
    removed: Tensor = field(init=False)
    reasons: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        flow = self.flow
        self.group = components(flow.count, flow.pairs)
        live = torch.zeros(flow.count, dtype=torch.bool)  # of a group, whether an element is needed and unknown
        live[0] = True
        for value in self.values():
            live[self.group[value.labels[value.live].unique().cpu()]] = True
        self.removed = ~live[self.group]
        if flow.refusal is not None:
            self.keep(torch.arange(flow.count), f"stays, because the model {flow.refusal}")
        for labels, reason in flow.locks:
            self.keep(labels, reason)
        while any([self._keep_one(), self._keep_shapes(), self._keep_constants()]):
            pass

    def values(self) -> list[Value]:
        """Return all values of the flow with units, results and arguments."""
        found = {id(v): v for results in self.flow.values for v in results}
        found |= {id(m.x): m.x for m in self.flow.mixings}
        return [*found.values()]

    def keep(self, labels: Tensor, reason: str) -> bool:
        """Keep the groups of units; return whether one of them was to go."""
        labels = compact(labels).flatten().unique().cpu()
        for group in self.group[labels].unique().tolist():
            self.reasons.setdefault(group, reason)
        groups = self.group[labels[self.removed[labels]]].unique()
        if len(groups):
            gone = torch.zeros_like(self.removed)
            gone[groups] = True
            self.removed &= ~gone[self.group]
        return bool(len(groups))

    def gone(self, labels: Tensor) -> Tensor:
        """Return which elements go, bool of the labels' shape."""
        return self.removed.to(labels.device)[labels]

    def _keep_one(self) -> bool:
        """Keep a unit of each dimension that would become empty."""
        kept = False
        along = [labels for dims in self.flow.dims.values() for labels in dims.values()]
        for labels in [*along, *(labels for _, _, labels in self.flow.counts), *(v.labels for v in self.values())]:
            if labels.numel() and bool(self.gone(compact(labels)).all()):
                kept |= self.keep(labels.flatten()[:1], "is the last one of its layer")
        return kept

    def _keep_shapes(self) -> bool:
        """Keep units whose elements are no whole slices of a tensor."""
        kept = False
        elements = [dims[None] for dims in self.flow.dims.values() if None in dims]
        for labels in [*elements, *(value.labels for value in self.values())]:
            stays = ~self.gone(compact(labels))
            if not bool(stays.all()) and int(stays.sum()) != prod(len(k) for k in kept_indices(stays)):
                kept |= self.keep(labels, "is a part of a tensor that cannot be cut there")
        return kept

    def _keep_constants(self) -> bool:
        """Keep constants that the layers behind cannot take into their biases."""
        return any([self._keep_constants_of(mixing) for mixing in self.flow.mixings if not mixing.grouped])

    def _keep_constants_of(self, mixing: Mixing) -> bool:
        constant = Constants(self, mixing)
        others = [m for m in self.flow.mixings if m.weight is mixing.weight and m is not mixing]
        where = f"the input of {mixing.call.where}"
        kept = self.keep(
            mixing.cols[constant.folded & ~constant.uniform], f"is a constant that differs over positions in {where}"
        )
        for other in [m for m in others if m.row == mixing.row]:
            theirs = Constants(self, other)
            differ = (constant.values - theirs.values).abs() > 1e-6 * constant.values.abs()
            reason = f"is another constant in another call of {mixing.call.module}"
            kept |= self.keep(mixing.cols[(constant.folded | theirs.folded) & differ], reason)
        if constant.carrier_needed and (others or id(mixing.weight) in self.flow.tables):
            reason = f"is a constant that a weight used in several places would have to carry in {mixing.call.where}"
            return self.keep(mixing.cols[constant.folded], reason) or kept
        if constant.carrier_needed and constant.carrier is None:
            largest = (constant.values.abs() * constant.folded).argmax()
            reason = f"carries the constants of other channels into {mixing.call.where}, whose bias cannot take them"
            kept |= self.keep(mixing.cols[largest : largest + 1], reason)
        return kept


class Constants:
    """The constant channels of one product's input that go.

    Attributes:
        values: float64 [K], of each channel its constant, 0 where it is unknown.
        uniform: bool [K], whether the constant is the same at all positions.
        folded: bool [K], the channels that go and whose constant must be added elsewhere.
        carrier_needed: whether the bias cannot take them: zeros around the input, or no bias.
        carrier: a constant channel that stays, and whose weights can take them; None if there is none.
    """

    def __init__(self, plan: Plan, mixing: Mixing) -> None:
        x, axis = mixing.x, mixing.axis
        channels = x.data.shape[axis]
        data = x.data.double().movedim(axis, -1).reshape(-1, channels)  # [positions, K]
        known = x.known.movedim(axis, -1).reshape(-1, channels).all(0)
        low, high = data.amin(0), data.amax(0)
        size = torch.maximum(low.abs(), high.abs())
        self.uniform = known & (high - low <= 1e-6 * size)
        self.values = torch.where(known, data[0], 0.0)
        # Of all rows that stay: a constant row counts too, since what reads it computes with it.
        uses = used(mixing.weight, mixing.row, mixing.column)[~plan.gone(mixing.rows)].any(0)
        self.folded = plan.gone(mixing.cols) & known & (size > 0) & uses
        # Another layer may hold the same bias, which then can take no constants.
        if mixing.bias is None:
            free = may_get_bias(plan.flow, mixing)
        else:
            shared = any(m.bias is mixing.bias and m.weight is not mixing.weight for m in plan.flow.mixings)
            free = not shared and None not in plan.flow.dims[id(mixing.bias)]
        self.carrier_needed = bool(self.folded.any()) and (mixing.padded or not free)
        staying = self.uniform & ~plan.gone(mixing.cols) & (size > 0)
        self.carrier = int((size * staying).argmax()) if bool(staying.any()) else None


def may_get_bias(flow: Flow, mixing: Mixing) -> bool:
    """Return True if the calling module is a layer of torch that reads its weight and its bias."""
    module = flow.model.get_submodule(mixing.call.module)
    known = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    alone = len(locations(flow.model)[id(mixing.weight)]) == 1
    return alone and type(module) in known and module._parameters.get("weight") is mixing.weight


def kept_indices(stays: Tensor) -> list[Tensor]:
    """Return, for each dimension of a bool tensor, the indices with an element that stays, [kept]."""
    return [
        stays.movedim(d, 0).reshape(size, stays.numel() // max(1, size)).any(1).nonzero().flatten()
        for d, size in enumerate(stays.shape)
    ]


def kept_shape(plan: Plan, value: Value) -> tuple[int, ...]:
    """Return the shape that a value has after the cut."""
    small = compact(value.labels)
    indices = kept_indices(~plan.gone(small))
    return tuple(
        size if small.shape[d] < size else len(index)
        for d, (size, index) in enumerate(zip(value.labels.shape, indices, strict=True))
    )


def kept_part(plan: Plan, value: Value, tensor: Tensor) -> Tensor:
    """Return the elements of a tensor of a value's shape that are left of it after the cut."""
    small = compact(value.labels)
    for d, index in enumerate(kept_indices(~plan.gone(small))):
        if len(index) < small.shape[d]:
            tensor = tensor.index_select(d, index)
    return tensor


def components(count: int, pairs: list[Tensor]) -> Tensor:
    """Return the smallest label of each label's connected component, int64 [count], from pairs [2, P] of labels."""
    group = torch.arange(count)
    if not pairs:
        return group
    left, right = torch.cat([p.cpu() for p in pairs], 1)
    while True:
        a, b = group[left], group[right]
        low, high = torch.minimum(a, b), torch.maximum(a, b)
        if bool((low == high).all()):
            return group
        group.scatter_reduce_(0, high, low, "amin")
        while not torch.equal(group, jumped := group[group]):
            group = jumped
