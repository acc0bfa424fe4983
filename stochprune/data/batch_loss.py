"""BatchLoss: the loss of a model on a batch, a pair, a longer tuple, a mapping, or anything with a hook.

Trainers and scores take the same batches, because all of them call this.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stochprune.arguments import checked, shown
from stochprune.data.labels import check_labels, checked_loss

LossFunction = Callable[[Tensor, Tensor], Tensor]
ForwardLoss = Callable[[nn.Module, Any], Tensor | tuple[Tensor, Any]]
"""A function of a model and a batch, on the model's device, that returns the loss, or the loss and the outputs."""


@dataclass(frozen=True)
class Found:
    """The loss of a batch, a scalar; the outputs of the model, None if a hook does not return them; the targets."""

    loss: Tensor
    outputs: Any
    targets: Any


class BatchLoss:
    """Computes the loss of a model on a batch.

    A batch is a pair ``(x, y)`` of tensors, a longer tuple of tensors ``(x1, x2, ..., y)``, or a mapping. Of tuples the
    last tensor holds the targets: ``loss_fn(model(x1, x2, ...), y)``. In a pair, x may be a mapping of keyword
    arguments. A mapping alone gives the model its keyword arguments, and the model returns its loss
    (``outputs.loss``), as models of transformers do. A hook takes any batch. Batches are moved to the device of the
    model's first parameter.

    Args:
        loss_fn: a function of (outputs, y).
        hook: used instead, if given.
        dtype: of autocast; None for none.
        argument: that has the batches, for messages: ``train_loader``, or such as ``snip: batches``.
    """

    @checked
    def __init__(
        self,
        loss_fn: LossFunction | None = None,
        hook: ForwardLoss | None = None,
        dtype: torch.dtype | None = None,
        argument: str = "batches",
    ) -> None:
        self.loss_fn, self.hook, self.dtype, self.argument = loss_fn, hook, dtype, argument

    def __call__(self, model: nn.Module, batch: Any, number: int) -> Found:
        """Return the loss of the batch of this number.

        Raises:
            TypeError: a batch of another kind, or one that the model's forward does not take.
            ValueError: labels that do not fit the outputs of cross-entropy, or a loss that is not one number.
        """
        device = next(model.parameters()).device
        with self._cast(device):
            found = self._of_hook(model, batch, device) if self.hook else self._of_batch(model, batch, device, number)
        checked_loss(found.loss)
        return found

    def forward(self, model: nn.Module, batch: Any, number: int) -> None:
        """Run the model on a batch, whose labels may be anything, for what its layers see; errors as above."""
        device = next(model.parameters()).device
        with self._cast(device):
            if self.hook:
                self._of_hook(model, batch, device)
            else:
                self._outputs(model, batch, device, number, labels=False)

    def _cast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self.dtype is None else torch.autocast(device.type, self.dtype)

    @property
    def _advice(self) -> str:
        """The way to give a hook."""
        where = "LoopOptions(forward_loss=...)" if self.argument == "train_loader" else "loss_fn=BatchLoss(hook=...)"
        return f"{where}, a function (model, batch) that returns the loss"

    def _of_hook(self, model: nn.Module, batch: Any, device: torch.device) -> Found:
        assert self.hook is not None
        batch = moved(batch, device)
        result = self.hook(model, batch)
        loss, outputs = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
        return Found(loss, outputs, batch[-1] if isinstance(batch, (tuple, list)) and batch else batch)

    def _of_batch(self, model: nn.Module, batch: Any, device: torch.device, number: int) -> Found:
        outputs, targets = self._outputs(model, batch, device, number)
        if isinstance(batch, Mapping):
            loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
            if loss is None:
                raise TypeError(
                    f"{self.argument}: batch {number} is {kind_of_batch(batch)}, and the model returns no loss for it: "
                    f"add the labels, or give {self._advice}"
                )
            return Found(loss, outputs, targets)
        if self.loss_fn is None:
            raise ValueError(f"{self.argument}: batch {number} is {kind_of_batch(batch)}, which needs loss_fn")
        check_labels(self.loss_fn, outputs, targets)
        targets = targets.to(device)
        return Found(self.loss_fn(outputs, targets), outputs, targets)

    def _outputs(
        self, model: nn.Module, batch: Any, device: torch.device, number: int, labels: bool = True
    ) -> tuple[Any, Any]:
        """Return the outputs of the model, and the last item of a tuple, or the mapping on the device."""
        if (found := inputs_of(batch, labels)) is None:
            raise TypeError(
                f"{self.argument}: batch {number} must be a tuple of tensors, the inputs and then the labels, or a "
                f"mapping, got {kind_of_batch(batch)}. Use a DataLoader with a collate_fn, or give {self._advice}"
            )
        args, kwargs, targets = moved(found[0], device), moved(found[1], device), found[2]
        targets = kwargs if targets is batch else targets
        try:
            return model(*args, **kwargs), targets
        except TypeError as error:
            try:
                inspect.signature(model.forward).bind(*args, **kwargs)
            except TypeError as reason:
                raise TypeError(
                    f"{self.argument}: batch {number} is {kind_of_batch(batch)}, which {type(model).__name__}.forward "
                    f"does not take ({reason}): change the loader, or give {self._advice}"
                ) from error
            raise


def inputs_of(batch: Any, labels: bool = True) -> tuple[list[Tensor], Mapping[str, Any], Any] | None:
    """Return the inputs of a batch by position and by keyword, and its targets; None for a batch of another kind.

    The targets of a mapping are the mapping itself.

    Args:
        labels: whether the last item of a tuple must be a tensor.
    """
    if isinstance(batch, Mapping):
        return [], batch, batch
    if not isinstance(batch, (tuple, list)) or len(batch) < 2 or (labels and not isinstance(batch[-1], Tensor)):
        return None
    *inputs, targets = batch
    if all(isinstance(x, Tensor) for x in inputs):
        return inputs, {}, targets
    return ([], inputs[0], targets) if len(inputs) == 1 and isinstance(inputs[0], Mapping) else None


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


COUNTED = ("input_ids", "inputs_embeds", "pixel_values", "labels", "targets")
"""Keys of a mapping; the first that it has counts its examples."""


def count_examples(batch: Any) -> int:
    """Return the number of examples of a batch: the first dimension of a tensor in it; 1 if it has none.

    Of a tuple or list the first item with tensors counts. Of a mapping the first of :data:`COUNTED` does; a mapping
    without them counts by the largest first dimension of its values, because some have 1 for all examples, such as
    positions [1, T].
    """
    count = _first_dimension(batch)
    return 1 if count is None else count


def _first_dimension(batch: Any) -> int | None:
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else None
    if isinstance(batch, Mapping):
        named = next((value for name in COUNTED if isinstance(value := batch.get(name), Tensor) and value.dim()), None)
        if named is not None:
            return len(named)
        return max(_first_dimensions(batch.values()), default=None)
    return next(_first_dimensions(batch), None) if isinstance(batch, (tuple, list)) else None


def _first_dimensions(values: Iterable[Any]) -> Iterator[int]:
    return (size for value in values if (size := _first_dimension(value)) is not None)


def kind_of_batch(batch: object) -> str:
    """Say in words what a batch is, for a message."""
    if isinstance(batch, Mapping):
        return f"a {type(batch).__name__} with the keys {', '.join(map(str, list(batch)[:8])) or 'none'}"
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return f"a {type(batch).__name__} of {', '.join(type(part).__name__ for part in batch[:8]) or 'nothing'}"
    return shown(batch)
