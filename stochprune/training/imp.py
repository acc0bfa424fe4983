"""Iterative magnitude pruning, with the retraining schedules of Back to Basics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochprune import masks as mask_tools
from stochprune import scores
from stochprune.arguments import checked
from stochprune.data.batch_loss import LossFunction
from stochprune.runs.config import FRACTION, Config, at_least, option
from stochprune.runs.run import run_folder
from stochprune.training.config import WeightConfig
from stochprune.training.loop import Loader
from stochprune.training.options import LoopOptions
from stochprune.training.rewinding import Rewinding
from stochprune.training.schedules import SCHEDULES, Schedule
from stochprune.training.starts import refuse_certain_emptiness
from stochprune.training.state import State
from stochprune.training.weights import train_weights


def _last_part(original: Schedule, ratio: float) -> Schedule:
    """Return the last part of a schedule, ``ratio`` of its length; all of it for a ratio of 1 or more."""
    return lambda progress: original(max(0.0, 1.0 - ratio) + min(1.0, ratio) * progress)


RETRAINING: Mapping[str, Callable[[Schedule, float, float], Schedule]] = {
    "ft": lambda original, ratio, discount: lambda progress: original(math.nextafter(1.0, 0.0)),
    "lrw": lambda original, ratio, discount: _last_part(original, ratio),
    "wr": lambda original, ratio, discount: _last_part(original, ratio),
    "slr": lambda original, ratio, discount: original,
    "clr": lambda original, ratio, discount: SCHEDULES["cosine"],
    "llr": lambda original, ratio, discount: SCHEDULES["linear"],
    "allr": lambda original, ratio, discount: lambda progress: discount * (1.0 - progress),
}
"""Learning-rate schedules of a retraining, made from the original schedule, the ratio of the lengths of both trainings,
and the discount. FT: the last rate of the original (Han et al. 2015). LRW, learning-rate rewinding: its last epochs
(Renda, Frankle and Carbin 2020, arXiv 2003.02389). WR, weight rewinding: the same (the same paper). SLR: the whole
schedule, compressed (Le and Hua 2021, arXiv 2105.03193). CLR: a cosine from the first rate. LLR: linear from the first
rate to 0. ALLR: linear from the discounted first rate (Zimmer, Spiegel and Pokutta 2023, arXiv 2111.00843)."""


@dataclass(frozen=True)
class IMPConfig(Config):
    """Configuration of iterative magnitude pruning: train, then prune and retrain the trained weights in cycles.

    After each pruning, learning-rate rewinding (``retraining="lrw"``) returns to the learning rate of epoch
    ``dense.epochs - retrain_epochs`` of the dense training. Weight rewinding (``"wr"``) returns to the weights of that
    epoch too: Frankle, Dziugaite, Roy and Carbin 2020, "Linear mode connectivity and the lottery ticket hypothesis"
    (arXiv 1912.05671). Epoch 0 gives the lottery tickets of Frankle and Carbin 2019 (arXiv 1803.03635).

    Raises:
        ValueError: weight rewinding to an epoch before the first.
    """

    sparsity: float = option(0.9, "Fraction of weights pruned at the end.", FRACTION)
    cycles: int = option(3, "Prunings, each of the same share of what is left.", at_least(1))
    retrain_epochs: int = option(3, "Epochs of weight training after each.", at_least(0))
    retraining: Literal["ft", "lrw", "wr", "slr", "clr", "llr", "allr"] = option(
        "allr", "Learning-rate schedule of the retraining; wr rewinds the weights too."
    )
    dense: WeightConfig = field(default_factory=WeightConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.retraining == "wr" and self.retrain_epochs > self.dense.epochs:
            raise ValueError(
                f"IMPConfig: retraining wr needs retrain_epochs of at most the {self.dense.epochs} epochs of the dense "
                f"training, got {self.retrain_epochs}"
            )


@dataclass(frozen=True)
class IMPRound:
    """The dense training, or a cycle.

    Attributes:
        sparsity: of the weights that were trained.
        discount: of ALLR's first rate; None of the other retrainings and of the dense training.
        history: of the training, see :func:`stochprune.training.train_weights`.
    """

    sparsity: float
    discount: float | None
    history: list[dict[str, float]]


class _Named:
    """A callback that names a training, so that loggers keep its history apart."""

    def __init__(self, name: str) -> None:
        self.name = name

    def setup(self, state: State) -> None:
        state.part = self.name


def discount(before: Mapping[str, Tensor], after: Mapping[str, Tensor], ratio: float) -> float:
    """Return ALLR's factor of the first learning rate: ``max(d1, d2)``, at most 1.

    ``d1 = |w - w_pruned| / (|w| sqrt(s))`` is the impact of the pruning, where s is the fraction of the non-zero
    weights that it removed. ``d2`` is the length of the retraining divided by that of the original training. Zimmer,
    Spiegel and Pokutta 2023, "How I learned to stop worrying and love retraining" (arXiv 2111.00843), section 3 as we
    recall it.

    Args:
        before, after: the weights by name, before and after the pruning.
        ratio: d2.
    """
    whole = sum(weight.double().square().sum().item() for weight in before.values())
    lost = sum((weight - after[name]).double().square().sum().item() for name, weight in before.items())
    there = sum(int(weight.count_nonzero()) for weight in before.values())
    left = sum(int(weight.count_nonzero()) for weight in after.values())
    removed = 1 - left / max(1, there)
    impact = math.sqrt(lost / (whole * removed)) if whole > 0 and removed > 0 else 0.0
    return min(1.0, max(impact, ratio))


@checked
def imp(
    model: nn.Module,
    train_loader: Loader,
    config: IMPConfig | None = None,
    *,
    loss_fn: LossFunction = F.cross_entropy,
    out: Path | None = None,
    callbacks: Sequence[object] = (),
    options: LoopOptions | None = None,
) -> tuple[dict[str, Tensor], list[IMPRound]]:
    """Train, prune by global magnitude and retrain, in place.

    Args:
        train_loader: batches (x, y) of a known length, iterated again in each epoch.
        out: if given, each training has a folder of its own in ``out/imp-<digest of config>``, and a run that was
            killed continues from there (pass the model as it was at the start).
        callbacks, options: of each training, see :func:`stochprune.finetune`; not a schedule of the learning rate.

    Returns:
        The final masks, and the rounds: the dense training, then each cycle.

    Raises:
        ValueError: no prunable layer, a sparsity that keeps fewer weights than there are layers, a loader without
            length, a dense training that a callback ends before the epoch of weight rewinding; see also
            :func:`stochprune.training.train_weights`. A cut may empty a layer, as of other methods.
    """
    config = config or IMPConfig()
    folder = None if out is None else run_folder(out, "imp", config)

    def train(
        name: str,
        weights: WeightConfig,
        schedule: Schedule,
        masks: Mapping[str, Tensor] | None = None,
        also: Sequence[object] = (),
    ) -> list[dict[str, float]]:
        return train_weights(
            model,
            train_loader,
            weights,
            masks=masks,
            schedule=schedule,
            loss_fn=loss_fn,
            folder=None if folder is None else folder / name,
            callbacks=[_Named(name), *callbacks, *also],
            options=options,
        )

    found = scores.magnitude(model)
    last = mask_tools.from_scores(found, config.sparsity, allow_empty=True)
    refuse_certain_emptiness(last, found, config.sparsity, "global")
    original = SCHEDULES[config.dense.schedule]
    early = [Rewinding(model, config.dense.epochs - config.retrain_epochs)] if config.retraining == "wr" else []
    rounds = [IMPRound(0.0, None, train("dense", config.dense, original, also=early))]
    masks: dict[str, Tensor] = {}
    ratio = config.retrain_epochs / max(1, config.dense.epochs)
    for cycle in range(1, config.cycles + 1):
        sparsity = 1 - (1 - config.sparsity) ** (cycle / config.cycles)
        before = {name: weight.detach().clone() for name, weight in scores.prunable_weights(model).items()}
        masks = mask_tools.from_scores(scores.magnitude(model), sparsity, allow_empty=True)
        for each in early:
            each.rewind(model)
        mask_tools.apply(model, masks)
        factor = discount(before, {name: torch.where(masks[name], weight, 0) for name, weight in before.items()}, ratio)
        schedule = RETRAINING[config.retraining](original, ratio, factor)
        again = replace(config.dense, epochs=config.retrain_epochs, schedule="constant")  # train has the schedule
        history = train(f"cycle{cycle}", again, schedule, masks)
        used = factor if config.retraining == "allr" else None
        rounds.append(IMPRound(sparsity, used, history))
    return masks, rounds
