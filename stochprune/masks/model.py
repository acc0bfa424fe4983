"""The masks of a model: those of a hardened one are where its weights are not zero."""

from __future__ import annotations

from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def of(model: nn.Module) -> dict[str, Tensor]:
    """Return the masks of a hardened model, or those that :func:`stochprune.harden` would cut in a converted one.

    They are given for the weights of linear, convolutional and masked layers, and for other weights of two or more
    dimensions of which some entries are exactly 0 (a tied embedding). A weight of zeros alone was not pruned, it is not
    yet trained, and is left out::

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
    masked = {module.weight: module for module in model.modules() if hasattr(module, "mask_logits")}
    usual = {module.weight for module in model.modules() if type(module) in LAYERS}
    found = {}
    for name, weight in model.named_parameters():
        if weight in masked:
            found[name] = masked[weight].mask()
        elif weight.dim() >= 2:
            mask = weight.detach() != 0
            kept = int(mask.count_nonzero())
            if kept and (weight in usual or kept < mask.numel()):
                found[name] = mask
    if not found:
        raise ValueError(
            f"masks.of: {type(model).__name__} has no linear, convolutional or masked layer, and no weight with zeros"
        )
    return found
