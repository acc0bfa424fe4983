"""The cut itself: parameters, buffers and the attributes that repeat their sizes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from stochprune.nn.masked_transposed import is_transformers_conv1d
from stochprune.shrinking.flow import Mixing, locations
from stochprune.shrinking.plan import Constants, Plan, kept_indices, kept_shape


def cut(plan: Plan) -> nn.Module:
    """Return a copy of the flow's model without the units that the plan removes."""
    flow = plan.flow
    model = copy.deepcopy(flow.model)
    held = locations(flow.model)
    tensors = {id(t): t for t in (*flow.model.parameters(), *flow.model.buffers())}
    state = {key: tensors[key].detach() for key in flow.dims if key in tensors}
    folded: set[int] = set()
    for mixing in flow.mixings:
        # A layer that runs twice has one bias, which takes its constants once.
        taker = id(mixing.weight if mixing.bias is None else mixing.bias)
        if not mixing.grouped and taker not in folded and _fold(plan, mixing, state, model):
            folded.add(taker)
    for key, tensor in state.items():
        for dim, labels in flow.dims[key].items():
            tensor = _without(plan, tensor, dim, labels)
        if tensor is not tensors[key]:
            _replace(model, held[key], tensor)
    for name, attribute, labels in flow.counts:
        setattr(model.get_submodule(name), attribute, int((~plan.gone(labels)).sum()))
    _set_heads(plan, model)
    for module in model.modules():
        _set_sizes(module)
    return model


def _fold(plan: Plan, mixing: Mixing, state: dict[int, Tensor], model: nn.Module) -> bool:
    """Add the constants of channels that go to the bias, or to the weights of a constant channel that stays.

    Returns:
        Whether there was one.
    """
    constants = Constants(plan, mixing)
    if not bool(constants.folded.any()):
        return False
    weight, bias = mixing.weight.detach(), mixing.bias
    by_channel = weight.double().movedim((mixing.row, mixing.column), (0, 1))  # [N, K, ...], a view if already double
    values = constants.values * constants.folded
    sums = torch.einsum("nk...,k->n...", by_channel, values)
    if constants.carrier_needed:
        carrier = constants.carrier
        assert carrier is not None
        changed = by_channel.clone()
        changed[:, carrier] += sums / constants.values[carrier]
        changed = changed.movedim((0, 1), (mixing.row, mixing.column))
        state[id(mixing.weight)] = changed.to(weight.dtype)
        return True
    added = sums.flatten(1).sum(1) if sums.dim() > 1 else sums  # [N]
    if bias is None:
        kept = added[~plan.gone(mixing.rows)].to(weight.dtype)
        model.get_submodule(mixing.call.module).bias = nn.Parameter(kept, requires_grad=mixing.weight.requires_grad)
    else:
        state[id(bias)] = (bias.detach().double() + added).to(bias.dtype)
    return True


def _without(plan: Plan, tensor: Tensor, dim: int | None, labels: Tensor) -> Tensor:
    """Return a tensor without the removed indices of one dimension, or of all where ``dim`` is None."""
    if dim is not None:
        gone = plan.gone(labels)
        return tensor if not bool(gone.any()) else tensor.index_select(dim, (~gone).nonzero().flatten())
    stays = ~plan.gone(labels)
    if bool(stays.all()):
        return tensor
    for d, index in enumerate(kept_indices(stays)):
        tensor = tensor.index_select(d, index)
    return tensor


def _replace(model: nn.Module, places: list[tuple[str, str]], tensor: Tensor) -> None:
    """Put one tensor into all modules that hold the old one."""
    first = model.get_submodule(places[0][0])
    old = getattr(first, places[0][1])
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    if isinstance(old, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=old.requires_grad)
    for name, attribute in places:
        setattr(model.get_submodule(name), attribute, tensor)


def _set_heads(plan: Plan, model: nn.Module) -> None:
    """Lower the number of heads in modules that reshape to it."""
    for call, values in zip(plan.flow.calls, plan.flow.values, strict=True):
        if call.name not in ("view", "reshape", "unflatten"):
            continue
        module = model.get_submodule(call.module)
        heads = {name: n for name, n in vars(module).items() if name in _HEADS and type(n) is int}
        for value in values:
            for old, new in zip(value.labels.shape, kept_shape(plan, value), strict=True):
                for name, number in heads.items():
                    if number == old != new:
                        setattr(module, name, new)


_HEADS = {"heads", "num_heads", "n_heads", "n_head", "num_attention_heads"}
_SIZES = {
    nn.Linear: ("out_features", "in_features"),
    nn.Embedding: ("num_embeddings", "embedding_dim"),
    nn.PReLU: ("num_parameters",),
}


def _set_sizes(module: nn.Module) -> None:
    """Set the attributes of torch's layers that repeat the sizes of their parameters."""
    weight = module._parameters.get("weight")
    if weight is None:
        return
    if isinstance(module, nn.modules.conv._ConvNd):
        first, second = weight.shape[:2]
        sizes = (first, second * module.groups) if module.transposed else (second * module.groups, first)
        module.in_channels, module.out_channels = sizes
    if is_transformers_conv1d(module):
        for name, size in zip(("nx", "nf"), weight.shape, strict=True):
            setattr(module, name, size)
    for kind, names in _SIZES.items():
        if isinstance(module, kind):
            for name, size in zip(names, weight.shape, strict=False):
                setattr(module, name, size)
