"""Weight training: dense, or under a fixed pruning mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.data.batch_loss import LossFunction
from stochprune.training.config import WeightConfig
from stochprune.training.constraint import Constraint
from stochprune.training.groups import WEIGHTS
from stochprune.training.loop import Loader
from stochprune.training.options import LoopOptions
from stochprune.training.schedules import Schedule
from stochprune.training.training import Training


class FixedMasks(Constraint):
    """Keeps pruned weights exactly 0: gradients, momentum and weight decay do not change them.

    Args:
        model: the model; its pruned weights are set to 0 immediately.
        masks: bool tensors by qualified parameter name, True = keep, each of its parameter's shape.

    Raises:
        ValueError: a name that the model lacks, or a shape that does not fit.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))  # a tied weight under each of its names
        self.pairs: list[tuple[nn.Parameter, Tensor]] = []
        for name, mask in masks.items():
            if name not in parameters:
                raise ValueError(f"masks name {name!r}, which is not a parameter of the model")
            if mask.shape != parameters[name].shape:
                raise ValueError(
                    f"the mask of {name} has shape {tuple(mask.shape)}, but its weight {tuple(parameters[name].shape)}"
                )
            self.pairs.append((parameters[name], ~mask.to(device=parameters[name].device, dtype=torch.bool)))
        self.hold()

    def before_step(self) -> None:
        for parameter, pruned in self.pairs:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(pruned, 0)

    @torch.no_grad()
    def hold(self) -> None:
        for parameter, pruned in self.pairs:
            parameter.masked_fill_(pruned, 0)


@checked
def train_weights(
    model: nn.Module,
    train_loader: Loader,
    config: WeightConfig,
    *,
    masks: Mapping[str, Tensor] | None = None,
    schedule: Schedule | None = None,
    loss_fn: LossFunction = F.cross_entropy,
    folder: Path | None = None,
    identity: str = "",
    callbacks: Sequence[object] = (),
    options: LoopOptions | None = None,
) -> list[dict[str, float]]:
    """Train a plain model in place.

    Args:
        train_loader: batches as for :func:`stochprune.finetune`, iterated again in each epoch; of a known length unless
            the rate is constant.
        masks: if given, pruned weights are always 0 (see :class:`FixedMasks`).
        schedule: used instead of ``config.schedule``.
        folder: if given, ``checkpoint.pt`` is written there, and a run that was killed continues from it.
        identity: further text that must be the same for a run to continue, such as the digest of its examples.
        callbacks, options: as for :func:`stochprune.finetune`.

    Returns:
        The history: ``epoch`` and mean ``loss``. For the errors see :func:`stochprune.training.loop.fit`.
    """
    training = Training(loss_fn, folder, identity, callbacks, options or LoopOptions())
    constraint = FixedMasks(model, masks or {})
    optimizer = make_optimizer(model, config, training.options)
    return training.fit(model, train_loader, config, optimizer, constraint, schedule)


def make_optimizer(
    model: nn.Module,
    config: WeightConfig,
    options: LoopOptions,
    scores: Sequence[Tensor] = (),
    score_lr: float = 0.0,
) -> torch.optim.Optimizer:
    """Return the optimiser of ``options``, or else of ``config``, over all parameters.

    Args:
        scores: parameters of the model with a learning rate of their own, ``score_lr``, and without weight decay.
    """
    chosen = {id(score) for score in scores}
    trained = [each for each in model.parameters() if each.requires_grad and id(each) not in chosen]
    groups: list[dict[str, Any]] = [{"params": trained, "name": WEIGHTS}] if trained or not scores else []
    if scores:
        groups.append({"params": [*scores], "lr": score_lr, "weight_decay": 0.0, "name": "scores"})
    if options.optimizer is not None:
        groups[0] = {"lr": config.lr, "weight_decay": config.weight_decay, **groups[0]}
        return options.optimizer(groups)
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True, weight_decay=config.weight_decay)
