"""Networks whose output for an example depends on more than the example; certify must refuse each of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from stochprune.models import mlp


class Layer(nn.Module):
    """A layer whose forward is given by a function, and which counts its runs."""

    def __init__(self, forward: Callable[[Layer, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.run, self.runs, self.seen = forward, 0, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return self.run(self, x)


class Stubborn(nn.BatchNorm1d):
    """A layer that does not leave training mode."""

    def train(self, mode: bool = True) -> Stubborn:
        return super().train(True)


class Hidden(nn.Module):
    """A layer that stays in training mode because ``eval()`` does not reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.BatchNorm1d(12).train()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.hidden[0](x)


class Updating(nn.Module):
    """Its statistics change with the examples, although they do not change any output yet."""

    def __init__(self, saved: bool = True) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(12), persistent=saved)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total += x.sum(0)
        return x


def cached(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Return the first output for inputs of this shape, again and again."""
    layer.seen = layer.seen or {}
    return layer.seen.setdefault(x.shape, x)


def after_others(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Subtract a running mean that is not in the state."""
    layer.seen = x.mean(0) if layer.seen is None else 0.9 * layer.seen + 0.1 * x.mean(0)
    return x - layer.seen


def first_of_the_batch(_: Layer, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[:1] + 3, x[1:]])


def by_place(_: Layer, x: torch.Tensor) -> torch.Tensor:
    return x * (1 + torch.arange(len(x))[:, None])


def near_the_end(_: Layer, x: torch.Tensor) -> torch.Tensor:
    """Set the example at position 17 to 0; an example that runs alone is never at this position."""
    return torch.cat([x[:17], 0 * x[17:18], x[18:]])


def above_ten(_: Layer, x: torch.Tensor) -> torch.Tensor:
    return x if len(x) <= 10 else -x


def late(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Change the output after the trial."""
    return x if layer.runs < 40 else x.flip(1)


DEPENDENT: dict[str, tuple[Callable[[], nn.Module], str]] = {  # and what the refusal names
    "mean of the batch": (lambda: Layer(lambda _, x: x - x.mean(0)), "middle (Layer)"),
    "a hundredth of the mean": (lambda: Layer(lambda _, x: x - x.mean(0) / 100), "middle (Layer)"),
    "norm of the batch": (lambda: Layer(lambda _, x: x / x.norm()), "middle (Layer)"),
    "statistics of the batch": (lambda: nn.BatchNorm1d(12, track_running_stats=False), "batch of 1"),
    "statistics of the batch, of one too": (
        lambda: Layer(lambda _, x: (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()),
        "middle (Layer)",
    ),
    "softmax over the batch": (lambda: Layer(lambda _, x: x.softmax(0)), "middle (Layer)"),
    "neighbour": (lambda: Layer(lambda _, x: x + x.roll(1, 0)), "middle (Layer)"),
    "sorted batch": (lambda: Layer(lambda _, x: x.sort(0).values), "middle (Layer)"),
    "first place": (lambda: Layer(first_of_the_batch), "middle (Layer)"),
    "place": (lambda: Layer(by_place), "middle (Layer)"),
    "one place": (lambda: Layer(near_the_end), "middle (Layer)"),
    "size of the batch": (lambda: Layer(lambda _, x: x / len(x)), "middle (Layer)"),
    "large batches": (lambda: Layer(above_ten), "middle (Layer)"),
    "squeezed batch": (lambda: Layer(lambda _, x: x.squeeze()), "certify: "),
    "count of forwards": (lambda: Layer(lambda layer, x: x + layer.runs), "middle (Layer)"),
    "count of forwards, late": (lambda: Layer(late), "other examples"),
    "cache": (lambda: Layer(cached), "middle (Layer)"),
    "running mean": (lambda: Layer(after_others), "middle (Layer)"),
    "stays in training": (lambda: Stubborn(12), "middle "),
    "hidden in training": (Hidden, "batch of 1"),
    "changed buffer": (Updating, "middle.total"),
    "changed buffer outside of the state": (lambda: Updating(saved=False), "middle.total"),
    "dropout in evaluation": (lambda: Layer(lambda _, x: F.dropout(x, 0.5, training=True)), "middle (Layer)"),
    "global generator": (lambda: Layer(lambda _, x: x + torch.randn_like(x)), "middle (Layer)"),
}
IN_BATCHES_ALONE = (  # of those: what one example at a time does not show, and is no fault there
    "mean of the batch",
    "a hundredth of the mean",
    "norm of the batch",
    "statistics of the batch, of one too",
    "softmax over the batch",
    "neighbour",
    "sorted batch",
    "first place",
    "place",
    "one place",
    "size of the batch",
    "large batches",
)


def network(middle: nn.Module) -> nn.Module:
    """6 inputs, 3 classes, and a layer of 12 numbers between."""
    layers = {"first": mlp((6, 12), seed=0), "middle": middle, "tanh": nn.Tanh(), "last": mlp((12, 3), seed=1)}
    return nn.Sequential(OrderedDict(layers))
