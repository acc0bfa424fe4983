"""Errors of deterministic and stochastic predictors: wrong classes in per cent, or the mean of another loss."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.data.batch_loss import LossFunction
from stochprune.data.labels import checked_loss
from stochprune.nn import sampling
from stochprune.nn.evaluation import evaluation
from stochprune.nn.members import sources_of


@dataclass(frozen=True)
class StochasticError:
    """Errors of a network under random masks, see :func:`error`.

    Attributes:
        mean: the mean error over single masks, which is the error of the stochastic predictor.
        ensemble: the error of the class probabilities averaged over the masks; with a loss, of the averaged outputs.
    """

    mean: float
    ensemble: float


@checked
@torch.no_grad()
def predict(model: nn.Module, x: Tensor, batch_size: int = 4096) -> Tensor:
    """Return the model's outputs [n, ...] for inputs [n, ...] in evaluation mode, and restore each module's mode.

    Raises:
        ValueError: no inputs, or a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"predict: batch_size must be at least 1, got {batch_size}")
    if x.dim() == 0 or not len(x):
        raise ValueError(f"predict: x must contain at least one input [n, ...], got shape {tuple(x.shape)}")
    device = next((parameter.device for parameter in model.parameters()), x.device)
    with evaluation(model):
        return torch.cat([model(part.to(device)) for part in x.split(batch_size)])


@checked
@torch.no_grad()
def error(outputs: Tensor, y: Tensor, loss_fn: LossFunction | None = None) -> float:
    """Return the per cent of examples whose largest output is not their label; or the loss, if one is given.

    Args:
        outputs: [n, classes], or [n, ...] for ``loss_fn``.
        y: int64 labels [n], or targets for ``loss_fn``.
        loss_fn: for regression and other errors: a function of (outputs, y), a mean over examples such as
            ``F.mse_loss``.

    Raises:
        ValueError: shapes or dtypes that do not fit, no examples, outputs that are NaN, or a loss that is not a number.
    """
    y = y.to(outputs.device)
    if not len(y.shape) or not len(y) or y.shape[:1] != outputs.shape[:1]:
        raise ValueError(
            f"error: outputs and y must have the same number of examples, at least one, got {tuple(outputs.shape)} "
            f"and {tuple(y.shape)}"
        )
    if bool(outputs.isnan().any()):
        raise ValueError("error: outputs contain NaN")
    if loss_fn is not None:
        if loss_fn is F.mse_loss and y.shape != outputs.shape:  # torch would broadcast, and only warn
            raise ValueError(f"error: outputs {tuple(outputs.shape)} and y {tuple(y.shape)} differ in shape")
        return checked_loss(loss_fn(outputs, y)).item()
    if y.dim() != 1 or y.is_floating_point() or y.is_complex() or outputs.dim() != 2 or outputs.is_complex():
        raise ValueError(
            f"error: without loss_fn, outputs must be [n, classes] and y integer labels [n], got "
            f"{tuple(outputs.shape)} and {y.dtype} {tuple(y.shape)}; for regression give loss_fn=F.mse_loss"
        )
    return 100.0 * (outputs.argmax(dim=1) != y).double().mean().item()


@checked
def stochastic_error(
    model: nn.Module, x: Tensor, y: Tensor, draws: int = 10, loss_fn: LossFunction | None = None
) -> StochasticError:
    """Return the errors under ``draws`` fresh hard masks. Draw counters and estimators of the layers do not change.

    Args:
        loss_fn: for regression and other errors, see :func:`error`.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    with _hard_masks(model), sampling(model):
        outputs = [predict(model, x) for _ in range(draws)]
    singles = [error(output, y, loss_fn) for output in outputs]
    parts = [output.softmax(dim=1) for output in outputs] if loss_fn is None else outputs
    return StochasticError(sum(singles) / draws, error(torch.stack(parts).mean(dim=0), y, loss_fn))


@contextlib.contextmanager
def _hard_masks(model: nn.Module) -> Iterator[None]:
    layers = sources_of("stochastic_error", model)
    before = [(layer.estimator, layer.mask_draw.clone()) for layer in layers]
    for layer in layers:
        layer.estimator = "straight_through"
    try:
        yield
    finally:
        for layer, (estimator, draw) in zip(layers, before, strict=True):
            layer.estimator = estimator
            layer.mask_draw.copy_(draw)
