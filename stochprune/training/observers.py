"""Callbacks that look at a training: a moving average of the model, validation, early stopping."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stochprune.arguments import checked
from stochprune.data.batch_loss import count_examples
from stochprune.nn import masked_layers, sampling
from stochprune.nn.evaluation import evaluation
from stochprune.training.loop import Loader
from stochprune.training.state import State

Metric = Callable[[Any, Any], Tensor | float]
"""A function of (outputs, targets) that returns one number, a mean over examples."""


class EMA:
    """A callback that keeps an exponential moving average of all parameters, weights and logits.

    The model ends with the averaged parameters, and :class:`Validation` measures them. Buffers, such as the statistics
    of batch norm, are those of the model. The average is ``torch.optim.swa_utils.AveragedModel``.

    Args:
        decay: the weight of the old average in each step, in [0, 1).
    """

    @checked
    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA: decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.model: AveragedModel | None = None

    def setup(self, state: State) -> None:
        self.model = AveragedModel(state.model, multi_avg_fn=get_ema_multi_avg_fn(self.decay))
        state.averaged = self.model.module

    def on_update(self, state: State) -> None:
        assert self.model is not None
        self.model.update_parameters(state.model)

    @torch.no_grad()
    def on_end(self, state: State) -> None:
        assert self.model is not None
        if int(self.model.n_averaged):
            for own, averaged in zip(state.model.parameters(), self.model.module.parameters(), strict=True):
                own.copy_(averaged)
            state.constraint.hold()

    def state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return self.model.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.model is not None
        self.model.load_state_dict(state_dict)


class Validation:
    """A callback that measures the model on other batches after each epoch.

    The history gets ``validation_loss`` and ``validation_<name>`` of each metric, means over all examples. The model is
    in evaluation mode and samples no masks: its weights with a probability below one half are pruned. If the training
    has an :class:`EMA`, its average is measured.

    Args:
        loader: batches like those of the training, iterated again after each epoch.
        metrics: by name, functions of (outputs, targets) that return a mean over examples. Targets are the last tensor
            of a tuple, or the mapping. A hook ``forward_loss`` must return the outputs.
    """

    @checked
    def __init__(self, loader: Loader, metrics: Mapping[str, Metric] | None = None) -> None:
        self.loader, self.metrics = loader, dict(metrics or {})

    @torch.no_grad()
    def on_epoch(self, state: State) -> None:
        model = state.averaged or state.model
        sums = dict.fromkeys(["loss", *self.metrics], 0.0)
        examples = 0
        with _evaluation(model):
            for number, batch in enumerate(self.loader):
                found = state.batch_loss(model, batch, number)
                if self.metrics and found.outputs is None:
                    raise ValueError(
                        "Validation: for metrics forward_loss must return (loss, outputs), it returns a loss"
                    )
                size = count_examples(batch)
                examples += size
                values = {name: metric(found.outputs, found.targets) for name, metric in self.metrics.items()}
                for name, value in {"loss": found.loss, **values}.items():
                    sums[name] += float(value) * size
        if not examples:
            raise ValueError("Validation: loader has no batches; an iterator can be used only once")
        state.history[-1].update({f"validation_{name}": value / examples for name, value in sums.items()})


class EarlyStopping:
    """A callback that ends a training once a number of the history has not improved for some epochs.

    Put it after the callback that measures the number. It stores nothing: the history decides, so a resumed run stops
    at the same epoch. NaN is no improvement. Of several such callbacks the first that ends the training decides.

    Args:
        monitor: the key in the history.
        patience: the number of epochs without a better value after which the training ends, at least 1.
        mode: ``min`` if smaller is better, ``max`` if larger is.
    """

    @checked
    def __init__(self, monitor: str = "validation_loss", patience: int = 3, mode: str = "min") -> None:
        if patience < 1:
            raise ValueError(f"EarlyStopping: patience must be at least 1, got {patience}")
        if mode not in ("min", "max"):
            raise ValueError(f"EarlyStopping: mode must be min or max, got {mode!r}")
        self.monitor, self.patience, self.mode = monitor, patience, mode

    def on_epoch(self, state: State) -> None:
        if self.monitor not in state.history[-1]:
            known = ", ".join(state.history[-1])
            raise ValueError(
                f"EarlyStopping: the history has no {self.monitor!r}, it has {known}; put Validation before it"
            )
        worst = math.inf if self.mode == "min" else -math.inf
        values = [worst if math.isnan(entry[self.monitor]) else entry[self.monitor] for entry in state.history]
        best = values.index(min(values) if self.mode == "min" else max(values))
        state.stop |= len(values) - 1 - best >= self.patience


@contextlib.contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, without sampling, while the block runs."""
    with evaluation(model), sampling(model, False) if masked_layers(model) else contextlib.nullcontext():
        yield
