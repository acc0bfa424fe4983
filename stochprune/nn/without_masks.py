"""without_masks: run a converted model as the dense model that it was, for a teacher that needs no second copy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from stochprune.nn.mask_source import MaskSource, override_weights
from stochprune.nn.members import layers_of
from stochprune.quantised import is_quantised


@contextlib.contextmanager
def without_masks(model: nn.Module) -> Iterator[nn.Module]:
    """Make all masked layers use their whole weights inside the context; no mask is sampled, no draw is used up::

        with torch.no_grad(), sp.nn.without_masks(model):
            teacher = model(x)

    If the weights are frozen, this is the model before :func:`stochprune.convert`.

    Raises:
        TypeError: not a module.
        ValueError: no masked layer.
    """
    layers = layers_of("without_masks", model).values()
    # No nn.Parameter, which would be a member of the layer; a quantised weight is dequantised in its layer's pass.
    weights: dict[MaskSource, Tensor] = {
        x: x.weight.detach() if is_quantised(x.weight) else x.weight.view_as(x.weight) for x in layers
    }
    with override_weights(weights):
        yield model
