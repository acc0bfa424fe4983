"""Probabilistic fine-tuning of a pruning mask."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from stochprune import rng
from stochprune.arguments import checked
from stochprune.data.batch_loss import LossFunction
from stochprune.nn import masked_layers, sampling
from stochprune.runs.results import json_history
from stochprune.runs.run import open_run, run_folder
from stochprune.training.all_masked import mask_logits
from stochprune.training.budget import Budget
from stochprune.training.config import FinetuneConfig
from stochprune.training.freezing import frozen
from stochprune.training.groups import parameter_groups
from stochprune.training.identity import identity
from stochprune.training.loop import Loader, fit
from stochprune.training.options import LoopOptions
from stochprune.training.sharpening import Sharpening
from stochprune.training.uncalled_layers import refuse_uncalled_layers


@dataclasses.dataclass(frozen=True)
class FinetuneResult:
    """The result of a fine-tuning.

    Attributes:
        history: one entry per epoch: ``epoch``, mean ``loss``, ``mean_keep`` (mean of q), ``flipped`` (number of
            weights whose q has crossed 1/2 since the start) and ``budget_error`` (sum(q) / budget - 1).
        folder: the run's folder, with ``checkpoint.pt`` and ``results.json``; None if nothing was written.
    """

    config: FinetuneConfig
    history: list[dict[str, float]]
    folder: Path | None


@checked
def finetune(
    model: nn.Module,
    train_loader: Loader,
    config: FinetuneConfig | None = None,
    *,
    loss_fn: LossFunction = F.cross_entropy,
    out: str | Path | None = None,
    callbacks: Sequence[object] = (),
    options: LoopOptions | None = None,
) -> FinetuneResult:
    """Minimise the expected loss over masks that keep weight i with its own probability q_i, in place.

    Our reading of Hayou, He and Dziugaite, "Probabilistic fine-tuning of pruning masks and PAC-Bayes self-bounded
    learning" (arXiv 2110.11804). Each step samples one mask, for all layers at the draw of the step. Adam follows an
    estimate of the gradient with respect to the logits of q and, in joint mode, the weights. A budget holds sum(q) at
    its start, or lets it fall to the number of weights to keep (see :class:`FinetuneConfig` and
    :mod:`stochprune.training.budget`). Prune the result with :func:`stochprune.harden`.

    Args:
        model: a model from :func:`stochprune.convert`. The estimator, temperature and seed of ``config`` are set in its
            layers. Logits that require no gradient do not change and do not count in the budget.
        train_loader: a ``DataLoader``, :class:`stochprune.data.Batches` or any iterable that can be iterated again in
            each epoch. A batch is a pair (x, y), a longer tuple of tensors (x1, x2, ..., y), or a mapping of keyword
            arguments for a model that returns its loss.
        loss_fn: a function of (model(x), y) that returns a scalar.
        out: if given, the folder ``out/finetune-<digest of config>`` stores the results and a checkpoint. After a kill
            the same call continues from the checkpoint bit for bit; pass the model as it was at the start. A model
            that uses torch's own generator (dropout) is not resumed bit for bit. Other data and another loss are
            refused as far as :mod:`stochprune.training.identity` tells them apart: give them another folder.
        callbacks: objects with the optional methods of :func:`stochprune.training.loop.fit`; for example
            :class:`stochprune.training.ProgressBar`, :class:`stochprune.training.Validation`,
            :class:`stochprune.training.EarlyStopping`, :class:`stochprune.training.EMA`,
            :class:`stochprune.training.CSVLogger`.
        options: another optimiser, a schedule, autocast, accumulation, clipping, a hook for the loss.

    Warns:
        StuckMaskWarning: no weight has changed its side of one half, and none will before the training ends; the
            message says which learning rate would do.

    Raises:
        ValueError: no masked layer, none whose logits require gradients, an empty loader, a loss without a gradient,
            logits that the budget cannot hold, a layer whose weight the model reads instead of calling the layer, a
            cubic budget without a sparsity or with a loader of unknown length, or ``sharpen`` of a constant budget.
        TypeError: a batch that the model does not take.
        FloatingPointError: the loss is not finite.
        CheckpointError: the folder's checkpoint is damaged or of another run, or another process is using the folder.
    """
    config, options = config or FinetuneConfig(), options or LoopOptions()
    layers = masked_layers(model)
    if not layers:
        raise ValueError("the model has no masked layer: convert it first, with stochprune.convert(model, masks)")
    for layer in layers.values():
        layer.estimator, layer.temperature = config.estimator, config.temperature
        layer.mask_seed.fill_(rng.as_int64(config.seed))
    if not any(layer.mask_logits.requires_grad for layer in layers.values()):
        raise ValueError("finetune: the mask_logits of at least one layer must require gradients, none of them does")
    steps = _steps(train_loader, config, options)
    budget = _budget_of(model, config, steps)
    folder = None if out is None else run_folder(out, "finetune", config)
    training = model.training
    with open_run(config, folder) as run:
        reads = functools.partial(identity, train_loader, loss_fn, options.forward_loss)
        checkpoint = run.checkpoint(config.checkpoint_every, model, options.identity(), reads=reads)
        model.train()
        trained = model.parameters() if config.mode == "joint" else mask_logits(model)
        with sampling(model), frozen(model, trained):
            groups = parameter_groups(model, config.weight_lr, logit_lr=config.logit_lr)
            optimizer = (options.optimizer or torch.optim.Adam)(groups)
            refuse_uncalled_layers(layers, optimizer)
            history = fit(
                model,
                train_loader,
                epochs=config.epochs,
                optimizer=optimizer,
                loss_fn=loss_fn,
                constraint=budget,
                checkpoint=checkpoint,
                callbacks=[*_own_callbacks(budget, config, steps), *callbacks],
                options=options,
            )
        model.train(training)
        run.write({"history": json_history(history)}, budget.logits[0].device)
    return FinetuneResult(config, history, folder)


def _steps(loader: Loader, config: FinetuneConfig, options: LoopOptions) -> int:
    """Return the steps in which a cubic budget falls; 0 for a constant one."""
    if config.budget_schedule == "constant":
        if config.sharpen != 1:
            raise ValueError(
                f"finetune: sharpen needs budget_schedule cubic, got constant and sharpen {config.sharpen}"
            )
        return 0
    if config.sparsity == 0:
        raise ValueError("finetune: budget_schedule cubic needs FinetuneConfig.sparsity, such as 0.95, got 0")
    return max(1, round(config.ramp * options.steps("budget_schedule cubic", loader, config.epochs)))


def _own_callbacks(budget: Budget, config: FinetuneConfig, steps: int) -> list[object]:
    """Return the callbacks of a configuration. As a callback the budget stores the number of its steps."""
    found: list[object] = [budget] if _counts_steps(budget) else []
    return [*found, Sharpening(budget, config.sharpen, steps)] if config.sharpen != 1 else found


def _counts_steps(budget: Budget) -> bool:
    """Return True for a schedule, and for shifts of bfloat16 logits, whose rounding has the number of the step."""
    rounded = budget.kind == "shift" and any(logits.dtype == torch.bfloat16 for logits in budget.logits)
    return budget.schedule == "cubic" or rounded


def _budget_of(model: nn.Module, config: FinetuneConfig, steps: int) -> Budget:
    """Return the budget of a configuration: at the present sum(q) of a model, or falling for ``steps`` steps."""
    strengths = {"penalty": config.penalty_strength, "kl": config.kl_strength}
    falling: dict[str, Any] = {"sparsity": config.sparsity, "schedule": "cubic", "steps": steps} if steps else {}
    strength, scope = strengths.get(config.budget), config.budget_scope
    return Budget(model, kind=config.budget, strength=strength, scope=scope, **falling)
