"""The linear layers of a model and statistics of their inputs, for scores that use activations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.data.batch_loss import BatchLoss, count_examples
from stochprune.nn import MaskedLinear
from stochprune.nn.masked_transposed import MaskedTransposedLinear, is_transformers_conv1d
from stochprune.nn.obstacles import find_obstacles
from stochprune.nn.registry import base_of, masked_type
from stochprune.nn.selection import Selectors, check_patterns, wanted
from stochprune.nn.unmasked import warn_of_unmasked
from stochprune.scores._common import Examples, mean_over_examples, tables_of, wide, with_values

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


def scored_layers(
    op: str, model: nn.Module, include: Selectors | None, exclude: Selectors | None
) -> dict[str, nn.Module]:
    """Return :func:`linear_layers` for the score ``op``; warn of weights without a score, such as experts."""
    layers = linear_layers(model, include, exclude)
    warn_of_others(op, model, layers, include, exclude)
    return layers


def warn_of_others(
    op: str, model: nn.Module, layers: Layers, include: Selectors | None, exclude: Selectors | None
) -> None:
    """Warn of the weights that the function ``op`` leaves dense, because they are not those of linear layers."""
    weights = [cast(Tensor, layer.weight) for layer in layers.values()]
    reason = f"{op} is for linear layers"
    warn_of_unmasked(model, weights, include, exclude, find_obstacles(model), op, reason)


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


_TOKENS = ""
"""A key beside the weight names: the number of tokens that reached each layer, [layers]."""


@torch.no_grad()
def input_means(
    model: nn.Module, loss: BatchLoss, batches: Examples, summary: Callable[[Tensor], Tensor], layers: Layers
) -> dict[str, Tensor]:
    """Return by weight name ``summary(inputs)``, a sum over tokens, per example of all batches and all ranks.

    ``inputs`` are all inputs of the layers of one weight in a forward pass, [tokens, in_features], in float32 or wider.
    A batch may miss a layer, such as an expert that none of its tokens reach.

    Raises:
        ValueError: no input reaches a layer in any batch.
    """
    names = {id(layer.weight): name for name, layer in layers.items()}
    reached: dict[nn.Module, str] = {
        module: names[id(module.weight)]
        for module in model.modules()
        if is_linear(module) and id(module.weight) in names
    }
    sums: dict[str, Tensor] = {}
    tokens: dict[str, int] = {}  # as sums, of one batch

    def look(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x = wide(arguments[0])
        name = reached[module]
        device = x.device.type  # autocast refuses a device that has none
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            value = summary(x.reshape(-1, x.shape[-1]))
        sums[name] = sums[name] + value if name in sums else value
        tokens[name] = tokens.get(name, 0) + x.numel() // x.shape[-1]

    def of_batches() -> Iterator[tuple[int, dict[str, Tensor]]]:
        for number, batch in enumerate(batches):
            sums.clear()
            tokens.clear()
            with_values(model, {}, functools.partial(loss.forward, batch=batch, number=number))
            count = count_examples(batch)
            found = {
                name: (sums[name] if name in sums else summary(_no_inputs(matrix(layers[name])))) / count
                for name in layers
            }
            first, counts = next(iter(found.values())), [tokens.get(name, 0) for name in layers]
            seen = torch.tensor(counts, dtype=first.dtype).to(first.device)
            yield count, {**found, _TOKENS: seen / count}

    handles = [module.register_forward_pre_hook(look) for module in reached]
    try:
        means = mean_over_examples(of_batches())
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name, count in zip(layers, means.pop(_TOKENS).tolist(), strict=True) if not count]
    if missing:
        raise ValueError(
            f"{loss.argument}: no input reached {', '.join(missing)}: give more batches, or name them in exclude"
        )
    return means


def _no_inputs(weight: Tensor) -> Tensor:
    """Return the inputs [0, in] of a layer of this weight [out, in] that no token reached, in float32 or wider."""
    return wide(torch.empty(0, weight.shape[1], dtype=weight.dtype, device=weight.device))
