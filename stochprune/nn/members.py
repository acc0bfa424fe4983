"""The masked layers of a model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from stochprune.nn.layer import MaskedLayer
from stochprune.nn.mask_source import MaskSource


def masked_layers(model: nn.Module) -> dict[str, MaskedLayer]:
    """Return the masked layers of a model by the qualified name of their weight, each shared layer once."""
    return _layers("masked_layers", model)


def layers_of(op: str, model: nn.Module) -> dict[str, MaskedLayer]:
    """Return the masked layers of a model by weight name; ``op`` is the public function that error messages name.

    Raises:
        TypeError: the model is not a module.
        ValueError: the model has no masked layer.
    """
    layers = _layers(op, model)
    if not layers:
        raise ValueError(f"{op}: {type(model).__name__} has no masked layer: stochprune.convert makes them")
    return layers


def sources_of(op: str, model: nn.Module) -> list[MaskSource]:
    """Return all modules of a model that sample masks or dropout by an address, its masked layers among them.

    Raises:
        TypeError, ValueError: as for :func:`layers_of`.
    """
    if isinstance(model, nn.Module) and (found := [each for each in model.modules() if isinstance(each, MaskSource)]):
        return found
    return [*layers_of(op, model).values()]  # which raises


def first_names(layers: Mapping[str, MaskedLayer], tensor: str = "mask_logits") -> dict[int, str]:
    """Return the name of the first layer with each tensor, logits or ``weight``, by its id; layers may share one."""
    return {id(getattr(layer, tensor)): name for name, layer in reversed([*layers.items()])}


def once(layers: Mapping[str, MaskedLayer], tensor: str = "mask_logits") -> dict[str, MaskedLayer]:
    """Return the layers without those whose tensor, logits or ``weight``, another one before them has."""
    first = first_names(layers, tensor)
    return {name: layer for name, layer in layers.items() if first[id(getattr(layer, tensor))] == name}


def _layers(op: str, model: nn.Module) -> dict[str, MaskedLayer]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a torch.nn.Module, got {type(model).__name__}")
    return {
        module.weight_name(name): module for name, module in model.named_modules() if isinstance(module, MaskedLayer)
    }
