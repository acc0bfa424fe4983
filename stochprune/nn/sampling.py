"""sampling: say whether the masked layers of a model sample masks or threshold, whatever their mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from stochprune.nn.members import layers_of


@contextlib.contextmanager
def sampling(model: nn.Module, enabled: bool = True) -> Iterator[nn.Module]:
    """Make all masked layers sample masks (``enabled``) or threshold inside the context, in either mode.

    Raises:
        TypeError: a model that is not a module, ``enabled`` that is not a bool.
        ValueError: no masked layer.
    """
    if not isinstance(enabled, bool):
        raise TypeError(f"sampling: enabled must be True or False, got {enabled!r}")
    layers = list(layers_of("sampling", model).values())
    before = [layer.sample for layer in layers]
    for layer in layers:
        layer.sample = enabled
    try:
        yield model
    finally:
        for layer, sample in zip(layers, before, strict=True):
            layer.sample = sample
