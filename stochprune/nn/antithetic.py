"""ARM and DisARM for a converted model: unbiased gradients of its keep logits."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from stochprune import functional
from stochprune.nn.mask_source import MaskSource, override_weights
from stochprune.nn.members import first_names, layers_of


def antithetic_gradients(
    model: nn.Module, loss: Callable[[nn.Module], Tensor], *, draw: int, estimator: str = "disarm"
) -> dict[str, Tensor]:
    """Return an unbiased estimate of the gradient of the expected loss with respect to the logits of all masked layers.

    ::

        grads = antithetic_gradients(model, lambda m: cross_entropy(m(x), y), draw=step)

    It evaluates the loss twice, and its variance grows with the number of masks, see
    :func:`stochprune.functional.antithetic_gradient`. The logits' ``grad`` and the layers' draw counters do not change.

    Args:
        model: a converted model, in the mode (train or eval) that the loss needs. Its masks are sampled in both modes.
        loss: a function from the model, under fixed masks, to a scalar.
        draw: the draw of the pair of masks, 0 .. 2^32 - 1.
        estimator: ``"disarm"`` or ``"arm"``.

    Returns:
        Gradients by weight name, like the logits; layers that share a mask have the name of the first.

    Raises:
        TypeError: a model that is not a module, a loss that is not a function.
        ValueError: no masked layer, layers with different seeds, one whose weights are not kept independently (n:m) or
            are random themselves, a loss that is not a finite scalar, or an unknown estimator.
    """
    layers = layers_of("antithetic_gradients", model)
    if not callable(loss):
        raise TypeError(f"antithetic_gradients: loss must be a function of the model, got {type(loss).__name__}")
    first = first_names(layers)
    for name, layer in layers.items():
        if not layer.independent:
            raise ValueError(
                f"antithetic_gradients: {name} ({type(layer).__name__}) draws more than one independent mask for each "
                f"logit; exclude such layers, or train them by their estimators"
            )
    seeds = {int(layer.mask_seed) % (1 << 64) for layer in layers.values()}
    if len(seeds) > 1:
        raise ValueError(
            f"antithetic_gradients: the layers have {len(seeds)} different seeds, such as {sorted(seeds)[:2]}: convert "
            f"the whole model under one seed"
        )

    def of(masks: dict[str, Tensor]) -> Tensor:
        given: dict[MaskSource, Tensor] = {}
        for layer in layers.values():
            mask = layer.of_weight(masks[first[id(layer.mask_logits)]])
            given[layer] = layer.unmasked_weight() * mask.to(layer.weight.dtype)
        with override_weights(given):
            return loss(model)

    names = sorted(first.values(), key=[*layers].index)
    return functional.antithetic_gradient(
        of,
        {name: layers[name].mask_logits.detach() for name in names},
        seed=seeds.pop(),
        draw=draw,
        streams={name: layers[name].stream for name in names},
        estimator=estimator,
    )
