"""Activation pruning: units of small activations are dropped more often, and go little by little."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.data.batch_loss import LossFunction
from stochprune.nn import convert, masked_layers, sampling
from stochprune.nn.harden import cut
from stochprune.nn.layer import MaskedLayer
from stochprune.nn.masked_linear import MaskedLinear
from stochprune.nn.restored import restored_on_error
from stochprune.nn.selection import Selectors, check_choice, wanted
from stochprune.runs.config import FRACTION, at_most, option
from stochprune.scores import prunable_weights
from stochprune.training.loop import Loader
from stochprune.training.options import LoopOptions
from stochprune.training.pruning import Counting, Pruned, PruningConfig
from stochprune.training.schedules import cubic
from stochprune.training.training import Training
from stochprune.training.weights import make_optimizer

CERTAIN = 40.0
"""A logit whose unit is always kept; its negative is never kept."""


@dataclass(frozen=True)
class ActivationPruningConfig(PruningConfig):
    """Activation pruning, after STAMP: Dinsdale, Jenkinson and Namburete 2022, "STAMP: Simultaneous training and model
    pruning for low data regimes in medical image segmentation" (Medical Image Analysis 81, 102583).

    Our reading: weights are trained under targeted dropout of whole units, and after each epoch the units of the
    smallest activations are pruned. The activation of a unit is the root mean square of the positive part of its
    layer's outputs over the epoch. A unit of activation a is dropped with the probability
    ``dropout (1 - a / largest)``, where the largest is that of its layer. Units are ranked over all layers, by a
    divided by the mean of its layer. How many go follows a cubic; the paper removes one at a time. The sparsity is the
    fraction of units.
    """

    ramp: float = option(0.75, "Fraction of the epochs in which units are pruned; then they stay.", at_most(1))
    dropout: float = option(0.1, "Probability of dropping a unit that is never active.", FRACTION)


class _Activations(Counting):
    """Measures activations, and sets the keep probabilities of units after each epoch.

    Args:
        layers: masked layers with one logit for each unit, by weight name.
        every: steps of an epoch.
        ramp: epochs in which the sparsity grows, at least 1.
    """

    def __init__(self, layers: Mapping[str, MaskedLayer], config: ActivationPruningConfig, every: int, ramp: int):
        self.layers, self.config, self.every, self.ramp = layers, config, every, ramp
        self.kept = [torch.ones(len(layer.weight), dtype=torch.bool) for layer in layers.values()]
        self.sums = [torch.zeros(len(layer.weight), dtype=torch.float64) for layer in layers.values()]
        self.counts = [0] * len(self.sums)
        self.handles = [layer.register_forward_hook(self._look(i)) for i, layer in enumerate(layers.values())]

    def _look(self, i: int) -> Any:
        def look(layer: MaskedLayer, args: Any, y: Tensor) -> None:
            if not layer.training:  # a callback such as Validation looks at the model
                return
            unit = y.dim() - 1 if isinstance(layer, MaskedLinear) else 1
            active = y.detach().relu().movedim(unit, 0).flatten(1)
            self.sums[i] += active.double().square().sum(1).cpu()
            self.counts[i] += active.shape[1]

        return look

    @torch.no_grad()
    def hold(self) -> None:
        if self.made % self.every:
            return
        activations = [(total / max(1, count)).sqrt() for total, count in zip(self.sums, self.counts, strict=True)]
        self._prune(activations, cubic(0.0, self.config.sparsity, min(1.0, self.made / self.every / self.ramp)))
        for layer, a, kept in zip(self.layers.values(), activations, self.kept, strict=True):
            keep = 1 - self.config.dropout * (1 - a / a[kept].max().clamp_min(1e-30))
            logits = torch.where(kept, torch.logit(keep).clamp(-CERTAIN, CERTAIN), -CERTAIN)
            layer.mask_logits.copy_(logits.view_as(layer.mask_logits))
        self.sums, self.counts = [torch.zeros_like(total) for total in self.sums], [0] * len(self.sums)

    def _prune(self, activations: Sequence[Tensor], sparsity: float) -> None:
        """Keep the units of the highest relative activations of those that are left, and one in each layer."""
        sizes, total = [len(kept) for kept in self.kept], sum(len(kept) for kept in self.kept)
        ranked = []
        for a, kept in zip(activations, self.kept, strict=True):
            relative = torch.where(kept, a / a[kept].mean().clamp_min(1e-30), -1.0)
            relative[torch.where(kept, a, -1.0).argmax()] = math.inf
            ranked.append(relative)
        count = max(len(sizes), total - round(sparsity * total))
        best = torch.cat(ranked).argsort(descending=True, stable=True)[:count]
        chosen = torch.zeros(total, dtype=torch.bool)
        chosen[best] = True
        self.kept = [new & kept for new, kept in zip(chosen.split(sizes), self.kept, strict=True)]

    def measure(self, state: Any) -> dict[str, float]:
        """Return the present ``sparsity`` of units, for the history."""
        kept = torch.cat(self.kept)
        return {"sparsity": 1 - int(kept.sum()) / len(kept)}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "kept": self.kept, "sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.kept, self.sums, self.counts = [*state["kept"]], [*state["sums"]], [*state["counts"]]


@checked
def activation_pruning(
    model: nn.Module,
    train_loader: Loader,
    config: ActivationPruningConfig | None = None,
    *,
    include: Selectors,
    exclude: Selectors | None = None,
    loss_fn: LossFunction = F.cross_entropy,
    folder: Path | None = None,
    callbacks: Sequence[object] = (),
    options: LoopOptions | None = None,
) -> Pruned:
    """Train a model and prune units of small activations meanwhile, in place; see :class:`ActivationPruningConfig`.

    Then :func:`stochprune.shrink` removes the units. A unit that is pruned keeps its bias, as with ``pattern="rows"``.

    Args:
        train_loader: batches as for :func:`stochprune.finetune`, of a known length.
        include, exclude: shell patterns on weight names, or types: the linear layers and convolutions whose units are
            pruned. Leave out the layer of the outputs.
        folder: if given, a checkpoint is written there, and the same call continues after a kill; pass the model as it
            was at the start.
        callbacks, options: see :func:`stochprune.finetune`.

    Returns:
        The result; its masks are those of the chosen layers.

    Raises:
        ValueError: no layer is chosen, or one whose units have no masks; see also
            :func:`stochprune.training.loop.fit`.
    """
    config = config or ActivationPruningConfig()
    training, mode = Training(loss_fn, folder, "", callbacks, options or LoopOptions()), model.training
    weights = prunable_weights(model)
    check_choice("activation_pruning", include, exclude, [*weights])
    names = [name for name in weights if wanted(model, [name], include, exclude)]
    chosen = {name: torch.ones_like(weights[name], dtype=torch.bool) for name in names}
    every = training.steps(train_loader, 1)
    with restored_on_error(model):
        model = convert(model, chosen, pattern="rows", seed=config.seed)
        layers = masked_layers(model)
        constraint = _Activations(layers, config, every, max(1, round(config.ramp * config.epochs)))
        for layer in layers.values():
            layer.mask_logits.detach().fill_(CERTAIN)
            layer.mask_logits.requires_grad_(False)
        try:
            with sampling(model):
                optimizer = make_optimizer(model, config, training.options)
                history = training.fit(model, train_loader, config, optimizer, constraint)
        finally:
            for handle in constraint.handles:
                handle.remove()
        kept = zip(layers.items(), constraint.kept, strict=True)
        masks = {name: layer.of_weight(units.view(-1, 1).to(layer.weight.device)) for (name, layer), units in kept}
        return Pruned(cut(model, masks).train(mode), masks, history)
