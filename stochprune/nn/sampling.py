"""sampling: say whether the masks of a model are sampled or thresholded, whatever the mode of its layers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from stochprune.nn.members import sources_of


@contextlib.contextmanager
def sampling(model: nn.Module, enabled: bool = True) -> Iterator[nn.Module]:
    """Make all masked layers sample masks (``enabled``) or threshold inside the context, in either mode.

    So do the masks of :class:`stochprune.nn.InputDependentMask` and the dropout of :func:`stochprune.nn.add_lora`.

    Raises:
        TypeError: a model that is not a module, ``enabled`` that is not a bool.
        ValueError: no masked layer, and nothing else that samples.
    """
    if not isinstance(enabled, bool):
        raise TypeError(f"sampling: enabled must be True or False, got {enabled!r}")
    sources = sources_of("sampling", model)
    before = [source.sample for source in sources]
    for source in sources:
        source.sample = enabled
    try:
        yield model
    finally:
        for source, sample in zip(sources, before, strict=True):
            source.sample = sample
