"""Statistics of the inputs of a model's linear layers, for scores that use activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from stochprune.data.pairs import pairs
from stochprune.nn import MaskedLinear
from stochprune.scores._common import Examples, call, wide


def linear_layers(model: nn.Module) -> dict[str, nn.Linear | MaskedLinear]:
    """Return the linear layers by the name of their weight, tied weights once.

    Raises:
        ValueError: the model has no linear layer.
    """
    layers: dict[str, nn.Linear | MaskedLinear] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if (type(module) is nn.Linear or isinstance(module, MaskedLinear)) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            layers[f"{name}.weight" if name else "weight"] = module
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layer")
    return layers


@torch.no_grad()
def input_sums(
    model: nn.Module, batches: Examples, summary: Callable[[Tensor], Tensor]
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield, for each batch, its number of examples and by weight name ``summary(inputs)`` per example.

    ``inputs`` are all inputs of the layers of one weight in a forward pass, [tokens, in_features], in float32 or wider.
    """
    names = {id(layer.weight): name for name, layer in linear_layers(model).items()}
    sums: dict[str, Tensor] = {}

    def look(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x = wide(arguments[0])
        value = summary(x.reshape(-1, x.shape[-1]))
        name = reached[module]
        sums[name] = sums[name] + value if name in sums else value

    reached: dict[nn.Module, str] = {
        module: names[id(module.weight)]
        for module in model.modules()
        if isinstance(module, nn.Linear | MaskedLinear) and id(module.weight) in names
    }
    handles = [module.register_forward_pre_hook(look) for module in reached]
    device = next(model.parameters()).device
    try:
        for x, _ in pairs(batches, "batches", labels=False):
            sums.clear()
            call(model, {}, x.to(device))
            missing = [name for name in names.values() if name not in sums]
            if missing:
                raise ValueError(f"no input reached {', '.join(missing)}")
            yield len(x), {name: sums[name] / len(x) for name in names.values()}
    finally:
        for handle in handles:
            handle.remove()
