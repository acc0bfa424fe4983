"""The linear layers of a model and statistics of their inputs, for scores that use activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.data.pairs import pairs
from stochprune.nn import MaskedLinear
from stochprune.nn.masked_transposed import MaskedTransposedLinear, is_transformers_conv1d
from stochprune.nn.registry import base_of, masked_type
from stochprune.nn.selection import Selectors, check_patterns, wanted
from stochprune.scores._common import Examples, call, tables_of, wide

Layers = Mapping[str, nn.Module]


def linear_layers(
    model: nn.Module, include: Selectors | None = None, exclude: Selectors | None = None
) -> dict[str, nn.Module]:
    """Return the linear layers by the name of their weight, tied weights once.

    Args:
        include, exclude: as in :func:`stochprune.convert`. A layer whose weight is that of an embedding, such as the
            output layer of many language models, is left out unless ``include`` names it.

    Raises:
        ValueError: the model has no linear layer, a pattern fits no parameter, or these selectors choose none.
    """
    check_patterns(model, include, exclude)
    found: dict[int, list[str]] = {}
    layers: dict[str, nn.Module] = {}
    tables = tables_of(model)
    for prefix, module in model.named_modules():
        if is_linear(module):
            name = f"{prefix}.weight" if prefix else "weight"
            layers[name] = module
            found.setdefault(id(module.weight), []).append(name)
    chosen = {
        names[0]: layers[names[0]]
        for weight, names in found.items()
        if wanted(model, names, include, exclude, default=weight not in tables)
    }
    if not chosen:
        if layers:
            raise ValueError(f"include {include!r} and exclude {exclude!r} choose none of {', '.join(layers)}")
        raise ValueError(f"{type(model).__name__} has no linear layer")
    return chosen


def is_linear(module: nn.Module) -> bool:
    """Return True for linear layers, masked or not, those that a user registered, and ``Conv1D`` of transformers."""
    kind = masked_type(module) if base_of(module) is type(module) else None
    if kind is not None and issubclass(kind, MaskedLinear):
        return True
    return isinstance(module, MaskedLinear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Return True if the layer keeps its weight as [in, out]."""
    return isinstance(module, MaskedTransposedLinear) or is_transformers_conv1d(module)


@checked
def by_output(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return values by weight name with a row for each output: those of ``Conv1D`` of transformers are transposed.

    Scores and masks have the shape in which a layer keeps its weight, and ``Conv1D`` keeps [in, out]. N:M masks and the
    scope ``"row"`` need a row for each output: ``by_output(model, masks.n_of_m(by_output(model, scores), 2, 4))``. The
    function is its own inverse.

    Args:
        model: dense or masked.
        values: by weight name, of the weights' shapes.
    """
    modules = dict(model.named_modules())

    def turned(name: str) -> bool:
        layer = modules.get(name.rpartition(".")[0])
        return layer is not None and is_transposed(layer)

    return {name: value.mT.contiguous() if turned(name) else value for name, value in values.items()}


def matrix(layer: nn.Module, values: Tensor | None = None) -> Tensor:
    """Return values of a layer's weight, by default the weight itself, as [out, in], or such values as the weight is.

    Both are the same change of view.
    """
    values = cast(Tensor, layer.weight).detach() if values is None else values
    return values.mT if is_transposed(layer) else values


@torch.no_grad()
def input_sums(
    model: nn.Module, batches: Examples, summary: Callable[[Tensor], Tensor], layers: Layers
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield, for each batch, its number of examples and by weight name ``summary(inputs)`` per example.

    ``inputs`` are all inputs of the layers of one weight in a forward pass, [tokens, in_features], in float32 or wider.
    """
    names = {id(layer.weight): name for name, layer in layers.items()}
    sums: dict[str, Tensor] = {}

    def look(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x = wide(arguments[0])
        value = summary(x.reshape(-1, x.shape[-1]))
        name = reached[module]
        sums[name] = sums[name] + value if name in sums else value

    reached: dict[nn.Module, str] = {
        module: names[id(module.weight)]
        for module in model.modules()
        if is_linear(module) and id(module.weight) in names
    }
    handles = [module.register_forward_pre_hook(look) for module in reached]
    device = next(model.parameters()).device
    try:
        for x, _ in pairs(batches, "batches", labels=False):
            sums.clear()
            given: Any = x
            named = given if isinstance(given, Mapping) else {"": x}
            moved = {name: value.to(device) for name, value in named.items()}
            call(model, {}, moved[""] if named is not given else moved)
            count = len(next(iter(named.values())))
            missing = [name for name in names.values() if name not in sums]
            if missing:
                raise ValueError(f"no input reached {', '.join(missing)}")
            yield count, {name: sums[name] / count for name in names.values()}
    finally:
        for handle in handles:
            handle.remove()
