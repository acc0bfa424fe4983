"""Whole models: dense to masked, and masked back to dense with exact zeros."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from stochprune import masks as mask_tools
from stochprune import rng
from stochprune.nn.layer import masked_layers
from stochprune.nn.masked_linear import MaskedLinear

Patterns = str | Sequence[str]


def convert(
    model: nn.Module,
    masks: Mapping[str, Tensor] | None = None,
    *,
    keep_kept: float = 0.95,
    keep_pruned: float = 0.05,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    seed: int = 0,
) -> nn.Module:
    """Replace the linear layers of a model by masked ones, in place.

    Parameters are adopted, not copied. A shared layer stays one layer; layers that share their weight share its
    logits and its stream. Streams come from the weights' qualified names.

    Args:
        model: the model; itself a linear layer, its masked layer is returned.
        masks: bool masks by weight name (``"encoder.0.weight"``), True where kept. Only the layers named are
            converted; without masks every layer is, and all of its weights count as kept.
        keep_kept, keep_pruned: the initial probabilities of keeping the weights that the mask keeps and prunes.
        include, exclude: shell patterns on weight names; only names that match ``include`` and do not match
            ``exclude`` are converted.
        seed: 0 .. 2^64 - 1, of the run.

    Returns:
        The model.

    Raises:
        ValueError: a mask whose name or shape fits no layer, patterns that leave no layer, probabilities outside
            (0, 1).
    """
    layers = {_weight_name(name): module for name, module in model.named_modules() if _convertible(module)}
    chosen = {name: layer for name, layer in layers.items() if _matches(name, include, exclude)}
    if masks is not None:
        unknown = sorted(set(masks) - set(chosen))
        if unknown:
            raise ValueError(f"convert: no linear layer has the weight {unknown[0]!r}; there are: {', '.join(chosen)}")
        by_weight = {id(chosen[name].weight): mask for name, mask in masks.items()}  # tied weights are named once
        chosen = {name: layer for name, layer in chosen.items() if id(layer.weight) in by_weight}
    if not chosen:
        raise ValueError("convert: no linear layer is left to convert")

    streams = rng.streams(layers)
    logits: dict[int, tuple[Tensor, int]] = {}  # by weight: tied weights share one mask and one stream
    replacements: dict[nn.Module, nn.Module] = {}
    for name, layer in chosen.items():
        keep: float | Tensor = keep_kept
        if masks is not None:
            keep = _probabilities(name, layer.weight, by_weight[id(layer.weight)], keep_kept, keep_pruned)
        masked = MaskedLinear.from_linear(layer, keep, seed=seed, stream=streams[name])
        masked.mask_logits, masked.stream = logits.setdefault(id(layer.weight), (masked.mask_logits, masked.stream))
        replacements[layer] = masked
    return _replace(model, replacements)


def harden(model: nn.Module, sparsity: float | None = None, scope: str = "global") -> nn.Module:
    """Replace the masked layers of a model by plain ones whose pruned weights are exactly 0, in place.

    Args:
        model: a converted model; itself a masked layer, its plain layer is returned.
        sparsity: the fraction of weights to prune, in [0, 1): those of the smallest probabilities, ties as in
            :func:`stochprune.masks.from_scores`. Default: those that the evaluation mode
            drops.
        scope: ``"global"`` ranks the weights of all layers together, ``"layer"`` each layer's apart.

    Returns:
        The model.

    Raises:
        ValueError: no masked layer, a sparsity outside [0, 1), an unknown scope, or a layer left with no weight.
    """
    layers = masked_layers(model)
    if not layers:
        raise ValueError("harden: the model has no masked layer")
    logits = {name: layer.mask_logits.detach() for name, layer in layers.items()}
    if sparsity is None:
        masks = {name: layer.gate() > 0 for name, layer in layers.items()}
        emptied = [name for name, mask in masks.items() if not mask.any()]
        if emptied:
            raise ValueError(f"harden: no probability reaches one half in {', '.join(emptied)}: give a sparsity")
    else:
        masks = mask_tools.from_scores(logits, sparsity, scope)
    replacements: dict[nn.Module, nn.Module] = {}
    weights: dict[int, Tensor] = {}
    for name, layer in layers.items():
        assert isinstance(layer, MaskedLinear)
        dense = layer.to_linear(masks[name])
        dense.weight = weights.setdefault(id(layer.weight), dense.weight)
        replacements[layer] = dense
    return _replace(model, replacements)


def _weight_name(module: str) -> str:
    return f"{module}.weight" if module else "weight"


def _convertible(module: nn.Module) -> bool:
    # Exactly nn.Linear: a subclass may compute something else.
    return type(module) is nn.Linear


def _matches(name: str, include: Patterns | None, exclude: Patterns | None) -> bool:
    def hit(patterns: Patterns) -> bool:
        return any(fnmatch.fnmatchcase(name, p) for p in ([patterns] if isinstance(patterns, str) else patterns))

    return (include is None or hit(include)) and (exclude is None or not hit(exclude))


def _probabilities(name: str, weight: Tensor, mask: Tensor, keep_kept: float, keep_pruned: float) -> Tensor:
    if mask.dtype != torch.bool or mask.shape != weight.shape:
        raise ValueError(
            f"convert: the mask of {name} must be bool {tuple(weight.shape)}, got {mask.dtype} {tuple(mask.shape)}"
        )
    kept = torch.full_like(weight, keep_kept, dtype=torch.float64)
    return torch.where(mask.to(weight.device), kept, keep_pruned)


def _replace(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in parent._modules.items():  # named_children() would pass over a layer's second name
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
    return replacements.get(model, model)
