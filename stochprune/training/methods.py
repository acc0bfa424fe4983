"""The pruning methods by name, with one interface: prune(model, train_loader, configuration)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from stochprune import scores
from stochprune.arguments import checked
from stochprune.data.batch_loss import LossFunction
from stochprune.masks.ablate import apply
from stochprune.masks.select import from_scores
from stochprune.nn.obstacles import find_obstacles
from stochprune.nn.restored import restored_on_error
from stochprune.nn.selection import maskable_weights
from stochprune.nn.unmasked import silent_about_unmasked, warn_of_unmasked
from stochprune.runs.config import POSITIVE, PROBABILITY, Config, at_least, option
from stochprune.training.admm import ADMMConfig, admm
from stochprune.training.batch_norm import recompute_statistics
from stochprune.training.config import FinetuneConfig, WeightConfig
from stochprune.training.continuous_sparsification import ContinuousSparsificationConfig, continuous_sparsification
from stochprune.training.edge_popup import EdgePopupConfig, edge_popup
from stochprune.training.frozen_probabilities import FrozenProbabilitiesConfig, frozen_probabilities
from stochprune.training.gradual_magnitude import GradualMagnitudeConfig, gradual_magnitude
from stochprune.training.groups import LOGITS
from stochprune.training.hard_concrete import HardConcreteConfig, hard_concrete
from stochprune.training.imp import IMPConfig, imp
from stochprune.training.loop import Loader
from stochprune.training.low_memory import low_memory_adam
from stochprune.training.maskllm import MaskLLMConfig, maskllm
from stochprune.training.movement import MovementConfig, movement
from stochprune.training.one_shot import LayerWiseConfig, OneShotConfig, layer_wise, one_shot
from stochprune.training.options import LoopOptions
from stochprune.training.prune_finetune import tune_and_cut
from stochprune.training.pruning import ChoiceConfig, Pruned, PruningConfig
from stochprune.training.rigl import RigLConfig, rigl
from stochprune.training.schedules import SCHEDULES
from stochprune.training.soft_threshold import train_under_threshold
from stochprune.training.soft_threshold_reparameterisation import STRConfig, soft_threshold_reparameterisation
from stochprune.training.starts import at_cut, start_masks
from stochprune.training.supermask import SupermaskConfig, supermask
from stochprune.training.training import Training


@dataclasses.dataclass(frozen=True)
class MaskFinetuningConfig(ChoiceConfig, FinetuneConfig):
    """Mask fine-tuning of a scored model and the cut of the mask, without the weight training that may follow."""

    cuts = True

    keep: float = option(0.95, "Keep probability at the start; of start score that of the median weight.", PROBABILITY)
    schedule: Literal["constant", "linear", "cosine"] = option("constant", "Schedule of the weights' learning rate.")
    low_memory: bool = option(
        False,
        "Logits in bfloat16 with stochastic rounding, moments of Adam in eight bits, steps inside backward, so without "
        "clipping and accumulation (extra lowbit).",
    )


@dataclasses.dataclass(frozen=True)
class IterativeMagnitudeConfig(PruningConfig):
    """Iterative magnitude pruning; see :class:`IMPConfig`.

    Rewinding (``lrw``, ``wr``) returns to an epoch of the dense training, so it needs ``dense_epochs``.
    """

    cycles: int = option(5, "Prunings, each of the same share of what is left; they share the epochs.", at_least(1))
    retraining: Literal["ft", "lrw", "wr", "slr", "clr", "llr", "allr"] = option(
        "llr", "Learning-rate schedule of each retraining; wr rewinds the weights too."
    )
    dense_epochs: int = option(0, "Epochs before the first pruning, part of the epochs.", at_least(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        left = self.epochs - self.dense_epochs
        if left < 0 or left % self.cycles:
            raise ValueError(
                f"IterativeMagnitudeConfig: cycles must divide the epochs after the dense_epochs, got "
                f"{self.cycles} and {left} epochs"
            )
        if self.retraining in ("lrw", "wr") and self.dense_epochs < left // self.cycles:
            raise ValueError(
                f"IterativeMagnitudeConfig: retraining {self.retraining} needs dense_epochs of at least the "
                f"{left // self.cycles} epochs of a retraining, got {self.dense_epochs}"
            )


@dataclasses.dataclass(frozen=True)
class SoftThresholdPruningConfig(PruningConfig):
    """Soft-threshold pruning by SGD with a cosine; see :class:`SoftThresholdConfig`.

    The paper's sparsity follows from ``threshold``; the cut at the end prunes the smallest weights to ``sparsity``.
    """

    threshold: float = option(0.1, "The threshold at the end.", POSITIVE)
    optimizer: Literal["sgd"] = option("sgd", "SGD with Nesterov momentum 0.9.")
    schedule: Literal["cosine"] = option(
        "cosine", "Schedule of the learning rate; the threshold grows with its integral."
    )


def _of_weights(name: str) -> Callable[[torch.optim.Optimizer, int], LRScheduler]:
    """Return the schedule of this name for the learning rates of the weights; those of the logits stay."""

    def make(optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
        falling, constant = (lambda step: SCHEDULES[name](step / max(1, steps))), (lambda step: 1.0)
        factors = [constant if group.get("name") == LOGITS else falling for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.LambdaLR(optimizer, factors)

    return make


def _choosing(training: Training, **chosen: Any) -> Training:
    """Return the training with options that its configuration chooses.

    Raises:
        ValueError: the caller has given one of them too.
    """
    for name in chosen:
        if getattr(training.options, name) is not None:
            raise ValueError(f"options and the configuration both have {name}; give one of them")
    return dataclasses.replace(training, options=dataclasses.replace(training.options, **chosen))


def mask_finetuning(model: nn.Module, loader: Loader, config: MaskFinetuningConfig, training: Training) -> Pruned:
    if config.schedule != "constant":
        training = _choosing(training, schedule=_of_weights(config.schedule))
    if config.low_memory:
        training = _choosing(training, optimizer=low_memory_adam(model, config.seed))
    scored = scores.by_output(model, training.chosen(config, model, loader))
    start = start_masks(
        scored, config.sparsity, config, scope=config.scope, pattern=config.pattern or None, keep=config.keep
    )
    return tune_and_cut(
        model,
        loader,
        scores.by_output(model, start),
        config.sparsity,
        at_cut(config, config.sparsity, config.scope),
        training,
        scope=config.scope,
        pattern=config.pattern or None,
        logits_dtype=torch.bfloat16 if config.low_memory else None,
        allow_empty=True,  # as the cuts of other methods
    )


def iterative_magnitude(
    model: nn.Module, loader: Loader, config: IterativeMagnitudeConfig, training: Training
) -> Pruned:
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(WeightConfig)}
    dense = WeightConfig(**{**shared, "epochs": config.dense_epochs})
    epochs = (config.epochs - config.dense_epochs) // config.cycles
    each = IMPConfig(config.sparsity, config.cycles, epochs, config.retraining, dense)
    masks, rounds = imp(model, loader, each, out=training.folder, **training.arguments)
    return Pruned(model, masks, [entry for round_ in rounds for entry in round_.history])


def soft_threshold_pruning(
    model: nn.Module, loader: Loader, config: SoftThresholdPruningConfig, training: Training
) -> Pruned:
    history = train_under_threshold(model, loader, config, config.threshold, training)
    masks = from_scores(scores.magnitude(model), config.sparsity, allow_empty=True)
    return Pruned(apply(model, masks), masks, history)


METHODS: Mapping[str, tuple[type[Config], Callable[..., Pruned]]] = {
    "one_shot": (OneShotConfig, one_shot),
    "layer_wise": (LayerWiseConfig, layer_wise),
    "gradual_magnitude": (GradualMagnitudeConfig, gradual_magnitude),
    "iterative_magnitude": (IterativeMagnitudeConfig, iterative_magnitude),
    "mask_finetuning": (MaskFinetuningConfig, mask_finetuning),
    "frozen_probabilities": (FrozenProbabilitiesConfig, frozen_probabilities),
    "rigl": (RigLConfig, rigl),
    "admm": (ADMMConfig, admm),
    "movement": (MovementConfig, movement),
    "continuous_sparsification": (ContinuousSparsificationConfig, continuous_sparsification),
    "hard_concrete": (HardConcreteConfig, hard_concrete),
    "edge_popup": (EdgePopupConfig, edge_popup),
    "supermask": (SupermaskConfig, supermask),
    "str": (STRConfig, soft_threshold_reparameterisation),
    "maskllm": (MaskLLMConfig, maskllm),
    "soft_threshold": (SoftThresholdPruningConfig, soft_threshold_pruning),
}
"""By name: the type of the configuration, and the function that runs it."""


@checked
def config_type(name: str, fields: Iterable[str] = ()) -> type[Config]:
    """Return the type of the configuration of the method called ``name``, which must have these fields.

    Raises:
        ValueError: an unknown method or field; the message lists the known ones.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; known are: {', '.join(METHODS)}")
    kind = METHODS[name][0]
    known = [field.name for field in dataclasses.fields(kind)]
    if unknown := sorted(set(fields) - set(known)):
        raise ValueError(f"{name} has no option {unknown[0]!r}; it has: {', '.join(known)}")
    return kind


@checked
def make_config(name: str, values: Mapping[str, Any]) -> Config:
    """Return the configuration of the method called ``name``.

    Raises:
        ValueError: see :func:`config_type`. Or a value outside its range.
    """
    return config_type(name, values)(**values)


@contextlib.contextmanager
def _named_once(model: nn.Module, config: Config) -> Iterator[None]:
    """Warn of weights that stay dense because no masked layer exists for them, such as experts, once for all steps."""
    if isinstance(config, LayerWiseConfig):  # which prunes linear layers alone, and says so itself
        yield
        return
    weights, exclude = maskable_weights(model).values(), getattr(config, "exclude", None) or None
    warn_of_unmasked(model, list(weights), None, exclude, find_obstacles(model), "prune")
    with silent_about_unmasked():
        yield


@checked
def prune(
    model: nn.Module,
    train_loader: Loader,
    config: Config,
    *,
    loss_fn: LossFunction = F.cross_entropy,
    folder: Path | None = None,
    callbacks: Sequence[object] = (),
    options: LoopOptions | None = None,
) -> Pruned:
    """Train and prune a model by the method of a configuration, in place.

    Every method takes the model as it is, trained or not, makes ``config.epochs`` passes over the data, and prunes
    ``config.sparsity`` of all prunable weights, ranked together. (edge-popup ranks the weights of each layer; RigL from
    a random start has densities of its own.) At the end one more pass over the data, without backward, computes the
    running statistics of batch norm again, because those of the training are not those of the cut network. A norm
    whose ``train`` keeps it in evaluation mode keeps its own; ``model.train()``, which every training calls, ends a
    freeze by ``norm.eval()``. ::

        found = sp.training.prune(model, loader, GradualMagnitudeConfig(sparsity=0.98, epochs=10))

    Args:
        model: if it is itself a layer, use the model of the result.
        train_loader: batches as for :func:`stochprune.finetune`, of a known length.
        config: such as :class:`GradualMagnitudeConfig`; its type chooses the method.
        folder: if given, checkpoints are written there, and the same call continues after a kill; pass the model as it
            was at the start.
        callbacks, options: see :func:`stochprune.finetune`.

    Warns:
        UnmaskedWeightsWarning: weights stay dense because no masked layer exists for their modules, such as experts.

    Raises:
        ValueError: a configuration of no method, no prunable layer, a loader of unknown length; see also
            :func:`stochprune.training.loop.fit`. Whatever is raised, the model has its own layers again; their weights
            have the values of the last step.
    """
    training, mode = Training(loss_fn, folder, "", callbacks, options or LoopOptions()), model.training
    for kind, run in METHODS.values():
        if type(config) is kind:
            with restored_on_error(model), _named_once(model, config):
                found = run(model, train_loader, config, training)
                recompute_statistics(found.model, train_loader, training)
            found.model.train(mode)
            return found
    known = ", ".join(kind.__name__ for kind, _ in METHODS.values())
    raise ValueError(f"prune: config must be one of {known}, got {type(config).__name__}")
