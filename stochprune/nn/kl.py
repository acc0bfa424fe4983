"""The KL of a whole model's masks from a prior, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from stochprune.nn.members import layers_of, once


def layer_kl(model: nn.Module, prior_logits: Mapping[str, Tensor | float]) -> dict[str, Tensor]:
    """Return KL(Q || P) of each layer's masks in nats, differentiable; the KL of the model is the sum.

    ::

        prior = {name: layer.mask_logits.detach().clone() for name, layer in masked_layers(model).items()}
        total = sum(layer_kl(model, prior).values())

    Args:
        model: a converted model.
        prior_logits: by weight name, tensors like the layer's logits or numbers. If layers share their masks (tied
            weights), only the first is counted.

    Returns:
        float64 scalars by weight name.

    Raises:
        TypeError: a model that is not a module, a prior that is not a dictionary.
        ValueError: no masked layer, a layer without a prior, a prior without a layer, or one that does not fit.
    """
    layers = layers_of("layer_kl", model)
    if not isinstance(prior_logits, Mapping):
        kind = type(prior_logits).__name__
        raise TypeError(f"layer_kl: prior_logits must be a dictionary by weight name, got {kind}")
    unknown = sorted(set(prior_logits) - set(layers))
    if unknown:
        raise ValueError(f"layer_kl: no masked layer has the weight {unknown[0]!r}; there are: {', '.join(layers)}")
    distinct = once(layers)
    missing = [name for name in distinct if name not in prior_logits]
    if missing:
        raise ValueError(f"layer_kl: prior_logits lack {missing[0]}; they have: {', '.join(prior_logits)}")
    return {name: layer.divergence(prior_logits[name]) for name, layer in distinct.items()}
