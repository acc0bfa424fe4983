"""Names of an earlier version; each warns and calls its successor."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager

from torch import nn

from stochprune.nn.batched_samples import batched_samples
from stochprune.nn.fused_masking import fused_masking


def one_launch(model: nn.Module) -> AbstractContextManager[nn.Module]:
    """Deprecated: call :func:`stochprune.nn.fused_masking`."""
    warnings.warn("one_launch is now called fused_masking", DeprecationWarning, stacklevel=2)
    return fused_masking(model)


def many_draws(model: nn.Module, draws: int) -> AbstractContextManager[nn.Module]:
    """Deprecated: call :func:`stochprune.nn.batched_samples`."""
    warnings.warn("many_draws is now called batched_samples", DeprecationWarning, stacklevel=2)
    return batched_samples(model, draws)
