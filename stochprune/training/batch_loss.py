"""BatchLoss: the loss of a model on a batch, a pair, a longer tuple, a mapping, or anything with a hook."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stochprune.data.pairs import kind_of_batch
from stochprune.training.labels import check_labels, checked_loss

LossFunction = Callable[[Tensor, Tensor], Tensor]
ForwardLoss = Callable[[nn.Module, Any], Tensor | tuple[Tensor, Any]]
"""A function of a model and a batch, on the model's device, that returns the loss, or the loss and the outputs."""

HINT = "or give LoopOptions(forward_loss=...), a function (model, batch) that returns the loss"


@dataclass(frozen=True)
class Found:
    """The loss of a batch, a scalar; the outputs of the model, None if a hook does not return them; the targets."""

    loss: Tensor
    outputs: Any
    targets: Any


class BatchLoss:
    """Computes the loss of a model on a batch.

    A batch is a pair ``(x, y)`` of tensors, a longer tuple of tensors ``(x1, x2, ..., y)``, or a mapping. Of tuples the
    last tensor holds the targets: ``loss_fn(model(x1, x2, ...), y)``. A mapping gives the model its keyword arguments,
    and the model returns its loss (``outputs.loss``), as models of transformers do. A hook takes any batch.

    Args:
        loss_fn: a function of (outputs, y).
        hook: used instead, if given.
        device: where batches are moved.
        dtype: of autocast; None for none.
    """

    def __init__(
        self, loss_fn: LossFunction, hook: ForwardLoss | None, device: torch.device, dtype: torch.dtype | None = None
    ) -> None:
        self.loss_fn, self.hook, self.device, self.dtype = loss_fn, hook, device, dtype

    def __call__(self, model: nn.Module, batch: Any, number: int) -> Found:
        """Return the loss of the batch of this number.

        Raises:
            TypeError: a batch of another kind, or one that the model's forward does not take.
            ValueError: labels that do not fit the outputs of cross-entropy, or a loss that is not one number.
        """
        cast = contextlib.nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)
        with cast:
            found = self._of_hook(model, batch) if self.hook else self._of_batch(model, batch, number)
        checked_loss(found.loss)
        return found

    def _of_hook(self, model: nn.Module, batch: Any) -> Found:
        assert self.hook is not None
        batch = moved(batch, self.device)
        result = self.hook(model, batch)
        loss, outputs = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
        return Found(loss, outputs, batch[-1] if isinstance(batch, (tuple, list)) and batch else batch)

    def _of_batch(self, model: nn.Module, batch: Any, number: int) -> Found:
        if isinstance(batch, Mapping):
            inputs = moved(batch, self.device)
            outputs = _call(model, (), inputs, batch, number)
            loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
            if loss is None:
                raise TypeError(
                    f"train_loader: batch {number} is {kind_of_batch(batch)}, and the model returns no loss for it: "
                    f"add the labels, {HINT}"
                )
            return Found(loss, outputs, inputs)
        if not isinstance(batch, (tuple, list)) or len(batch) < 2 or not all(isinstance(x, Tensor) for x in batch):
            raise TypeError(
                f"train_loader: batch {number} must be a tuple of tensors, the inputs and then the labels, or a "
                f"mapping, got {kind_of_batch(batch)}. Use a DataLoader with a collate_fn, {HINT}"
            )
        *inputs, y = batch
        outputs = _call(model, moved(inputs, self.device), {}, batch, number)
        check_labels(self.loss_fn, outputs, y)
        y = y.to(self.device)
        return Found(self.loss_fn(outputs, y), outputs, y)


def _call(model: nn.Module, args: Any, kwargs: Any, batch: Any, number: int) -> Any:
    try:
        return model(*args, **kwargs)
    except TypeError as error:
        try:
            inspect.signature(model.forward).bind(*args, **kwargs)
        except TypeError as reason:
            raise TypeError(
                f"train_loader: batch {number} is {kind_of_batch(batch)}, which {type(model).__name__}.forward does "
                f"not take ({reason}): change the loader, {HINT}"
            ) from error
        raise


def moved(batch: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on a device: a tensor, anything with ``to``, or tuples, lists and mappings."""
    return batch.to(device) if hasattr(batch, "to") else inside(batch, lambda value: moved(value, device))


def inside(batch: Any, change: Callable[[Any], Any]) -> Any:
    """Return a tuple, list or mapping with each of its values changed; anything else as it is."""
    if isinstance(batch, Mapping):
        return {name: change(value) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):  # a named tuple
        return type(batch)(*map(change, batch))
    return type(batch)(map(change, batch)) if isinstance(batch, (tuple, list)) else batch


def tensors_of(batch: Any) -> list[Tensor]:
    """Return the tensors in a batch, as far as :func:`moved` finds them."""
    if isinstance(batch, Tensor):
        return [batch]
    inner = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    return [tensor for value in inner for tensor in tensors_of(value)]
