"""The network that all bounds use: built without biases, trained, and measured once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from stochprune import masks, models
from stochprune.data.splits import Subset
from stochprune.theory import compression
from stochprune.theory.compression import Weights
from stochprune.theory.norm_bounds import Norms


@dataclass(frozen=True)
class Subject:
    """A trained network, dense or pruned, and the measurements that the bounds need.

    Attributes:
        weights: by name, float32 [out, in], in the order of the layers.
        train, held_out: the training examples, and others.
        test_x, test_y: the test set, scaled in the same way.
        radius: the largest norm of a training input.
        norms: the norms of each layer.
        margin, margin_loss: the share ``margin_loss`` of the training examples has a margin of ``margin`` or less.
    """

    weights: Weights
    train: Subset
    held_out: Subset
    test_x: Tensor
    test_y: Tensor
    radius: float
    norms: list[Norms]
    margin: float
    margin_loss: float

    @classmethod
    def of(
        cls, model: nn.Module, train: Subset, held_out: Subset, test_x: Tensor, test_y: Tensor, margin_share: float
    ) -> Subject:
        """Measure a model.

        Args:
            margin_share: the fraction of the training examples that may have a margin below ``margin``, which may be
                negative.
        """
        weights = weights_of(model)
        margins = compression.margins(compression.outputs(weights, train.x), train.y)
        margin = float(margins.sort().values[int(margin_share * len(margins))])
        loss = float((margins <= margin).double().mean())
        radius = float(train.x.flatten(1).double().norm(dim=1).max())
        norms = [Norms.of(weight) for weight in weights.values()]
        return cls(weights, train, held_out, test_x, test_y, radius, norms, margin, loss)

    def of_pruned(self, model: nn.Module, margin_share: float) -> Subject:
        """Measure another network on the same examples."""
        return Subject.of(model, self.train, self.held_out, self.test_x, self.test_y, margin_share)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """[out, in] of each layer."""
        return [(w.shape[0], w.shape[1]) for w in self.weights.values()]

    def train_error(self, weights: Weights) -> float:
        """Return the error of a network of these layers on the training examples, a fraction."""
        return _error(weights, self.train.x, self.train.y)

    def held_out_error(self, weights: Weights) -> float:
        """Return the error on the held-out examples, a fraction."""
        return _error(weights, self.held_out.x, self.held_out.y)

    def test_error(self, weights: Weights) -> float:
        """Return the error on the test examples, a fraction."""
        return _error(weights, self.test_x, self.test_y)


def _error(weights: Weights, x: Tensor, y: Tensor) -> float:
    return float((compression.outputs(weights, x).argmax(1) != y).double().mean())


def network(sizes: list[int], seed: int) -> nn.Sequential:
    """Build a fully connected network whose biases are 0 and stay 0, because the bounds have no biases."""
    model = models.mlp(sizes, seed=seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("weight"))
    return model


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights by name, without the biases."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith("weight")}


def next_mask(weights: Weights, kept: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return bool masks that keep the fraction ``share`` of the kept weights, the largest ones."""
    fraction = share * sum(int(mask.sum()) for mask in kept.values()) / sum(mask.numel() for mask in kept.values())
    scores = {name: w.abs().masked_fill(~kept[name], -1.0) for name, w in weights.items()}
    return masks.from_scores(scores, 1 - fraction)
