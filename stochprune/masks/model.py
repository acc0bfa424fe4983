"""The masks of a model: those of a hardened one are where its weights are not zero."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def of(model: nn.Module) -> dict[str, Tensor]:
    """Return the masks of a hardened model, or those that :func:`stochprune.harden` would cut in a converted one.

    They are given for the weights of linear, convolutional and masked layers, and for other weights of two or more
    dimensions of which some entries are exactly 0 (of attention, an LSTM, a tied embedding). A weight of zeros alone
    was not pruned, it is not yet trained, and is left out::

        sp.harden(model, sparsity=0.9)
        sp.training.train_weights(model, loader, config, masks=sp.masks.of(model))  # what is pruned stays pruned

    Args:
        model: a model whose pruned weights are exactly 0, or one from :func:`stochprune.convert`.

    Returns:
        bool masks by weight name, True where kept, each like its weight. A tied weight has its first name.

    Raises:
        TypeError: a model that is not a module.
        ValueError: there is no such weight, a converted model has NaN logits, or a weight lies on the meta device.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"masks.of: model must be a torch.nn.Module, got {type(model).__name__}")
    modules: list[Any] = list(model.modules())
    layers: dict[Tensor, Any] = {m.weight: m for m in modules if hasattr(m, "mask_logits")}
    found: dict[Tensor, tuple[str, Tensor]] = {}
    for prefix, module in model.named_modules():
        for key, weight in _matrices(module).items():
            name = f"{prefix}.{key}" if prefix else key
            if weight in found:
                continue
            if weight.is_meta:
                raise ValueError(f"masks.of: {name} lies on the meta device and holds no values; load them first")
            mask = layers[weight].mask() if weight in layers else weight.detach() != 0
            kept = int(mask.count_nonzero())
            of_layer = key == "weight" and type(module) in LAYERS
            if weight in layers or (kept and (of_layer or kept < mask.numel())):
                found[weight] = name, mask
    if not found:
        raise ValueError(
            f"masks.of: {type(model).__name__} has no linear, convolutional or masked layer, and no weight with zeros"
        )
    return dict(found.values())


def _matrices(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights of two or more dimensions of a module, by name in it; of attention and recurrent ones many."""
    own = {} if hasattr(module, "mask_logits") else module._parameters
    weights = {**own, "weight": getattr(module, "weight", None)}  # pruned by torch, weight is no parameter
    return {name: weight for name, weight in weights.items() if isinstance(weight, Tensor) and weight.dim() > 1}
