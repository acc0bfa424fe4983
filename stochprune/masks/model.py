"""The masks of a model: those of a hardened one are where its weights are not zero."""

from __future__ import annotations

from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def of(model: nn.Module) -> dict[str, Tensor]:
    """Return the masks of a hardened model, or those that :func:`stochprune.harden` would cut in a converted one.

    They are given for the weights of linear, convolutional and masked layers, and for other parameters of two or more
    dimensions of which some entries are exactly 0 (those of attention, an LSTM, a tied embedding). A weight of zeros
    alone was not pruned, it is not yet trained, and is left out::

        sp.harden(model, sparsity=0.9)
        sp.training.train_weights(model, loader, config, masks=sp.masks.of(model))  # what is pruned stays pruned

    Args:
        model: a model whose pruned weights are exactly 0, or one from :func:`stochprune.convert`.

    Returns:
        bool masks by weight name, True where kept, each like its weight. A tied weight has its first name.

    Raises:
        TypeError: a model that is not a module.
        ValueError: there is no such weight, or a converted model has NaN logits.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"masks.of: model must be a torch.nn.Module, got {type(model).__name__}")
    found: dict[Tensor, tuple[str, Tensor]] = {}
    for prefix, module in model.named_modules():
        if hasattr(module, "mask_logits"):
            found.setdefault(module.weight, (module.weight_name(prefix), module.mask()))
    for prefix, module in model.named_modules():
        for name, weight in {"weight": getattr(module, "weight", None), **module._parameters}.items():
            if not isinstance(weight, Tensor) or weight.dim() < 2 or weight in found:
                continue
            mask = weight.detach() != 0
            kept = int(mask.count_nonzero())
            if kept and ((name == "weight" and type(module) in LAYERS) or kept < mask.numel()):
                found[weight] = (f"{prefix}.{name}" if prefix else name, mask)
    if not found:
        raise ValueError(
            f"masks.of: {type(model).__name__} has no linear, convolutional or masked layer, and no weight with zeros"
        )
    return dict(found.values())
