"""Probabilistic fine-tuning of a pruning mask."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochprune import rng
from stochprune.arguments import checked
from stochprune.nn import masked_layers, sampling
from stochprune.runs.run import open_run, run_folder
from stochprune.training.budget import make_budget
from stochprune.training.config import FinetuneConfig
from stochprune.training.loop import Loader, LossFunction, fit
from stochprune.training.uncalled_layers import refuse_uncalled_layers


@dataclasses.dataclass(frozen=True)
class FinetuneResult:
    """The result of a fine-tuning.

    Attributes:
        history: one entry per epoch: ``epoch``, mean ``loss``, ``mean_keep`` (mean of q), ``flipped`` (number of
            weights whose q has crossed 1/2 since the start) and ``budget_error`` (sum(q) / its start - 1).
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
) -> FinetuneResult:
    """Minimise the expected loss over masks that keep weight i with its own probability q_i, in place.

    Our reading of Hayou, He and Dziugaite, "Probabilistic fine-tuning of pruning masks and PAC-Bayes self-bounded
    learning" (arXiv 2110.11804). Each step samples one mask, for all layers at the draw of the step. Adam follows an
    estimate of the gradient with respect to the logits of q and, in joint mode, the weights. A budget holds sum(q) at
    its start (see :mod:`stochprune.training.budget`). Prune the result with :func:`stochprune.harden`.

    Args:
        model: a model from :func:`stochprune.convert`. The estimator, temperature and seed of ``config`` are set in its
            layers. Logits that require no gradient do not change and do not count in the budget.
        train_loader: batches (x, y): a ``DataLoader``, :class:`stochprune.data.Batches` or any iterable that can be
            iterated again in each epoch.
        loss_fn: a function of (model(x), y) that returns a scalar.
        out: if given, the folder ``out/finetune-<digest of config>`` stores the results and a checkpoint. After a kill
            the same call continues from the checkpoint bit for bit; pass the model as it was at the start. A model
            that uses torch's own generator (dropout) is not resumed bit for bit.
        callbacks: objects with the optional methods ``on_step(state)`` and ``on_epoch(state)``, see
            :class:`stochprune.training.loop.State`; for example a :class:`stochprune.training.ProgressBar`.

    Raises:
        ValueError: no masked layer, none whose logits require gradients, an empty loader, a loss without a gradient,
            logits that the budget cannot hold, or a layer whose weight the model reads instead of calling the layer.
        FloatingPointError: the loss is not finite.
        CheckpointError: the folder's checkpoint is damaged or of another run, or another process is using the folder.
    """
    config = config or FinetuneConfig()
    layers = masked_layers(model)
    if not layers:
        raise ValueError("the model has no masked layer: convert it first, with stochprune.convert(model, masks)")
    for layer in layers.values():
        layer.estimator, layer.temperature = config.estimator, config.temperature
        layer.mask_seed.fill_(rng.as_int64(config.seed))
    logits = [tensor for tensor in {layer.mask_logits: None for layer in layers.values()} if tensor.requires_grad]
    if not logits:
        raise ValueError("finetune: the mask_logits of at least one layer must require gradients, none of them does")
    kept_at_start = [tensor.detach() >= 0 for tensor in logits]
    budget = make_budget(config, logits)

    def measure() -> dict[str, float]:
        kept = [tensor.detach() >= 0 for tensor in logits]
        return {
            "mean_keep": budget.kept() / sum(tensor.numel() for tensor in logits),
            "flipped": sum(int((now != then).sum()) for now, then in zip(kept, kept_at_start, strict=True)),
            "budget_error": budget.kept() / budget.target - 1,
        }

    folder = None if out is None else run_folder(out, "finetune", config)
    training = model.training
    with open_run(config, folder) as run:
        checkpoint = run.checkpoint(config.checkpoint_every, model)
        model.train()
        with sampling(model), _trainable(model, logits, config) as groups:
            optimizer = torch.optim.Adam(groups)
            refuse_uncalled_layers(layers, optimizer)
            history = fit(
                model,
                train_loader,
                epochs=config.epochs,
                optimizer=optimizer,
                loss_fn=loss_fn,
                constraint=budget,
                measure=measure,
                checkpoint=checkpoint,
                callbacks=callbacks,
            )
        model.train(training)
        run.write({"history": history}, logits[0].device)
    return FinetuneResult(config, history, folder)


@contextlib.contextmanager
def _trainable(model: nn.Module, logits: Sequence[Tensor], config: FinetuneConfig) -> Iterator[list[dict[str, object]]]:
    """Yield the optimiser's groups; inside the block weights that are not trained require no gradient."""
    chosen = {id(tensor) for tensor in logits}
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen and parameter.requires_grad]
    groups: list[dict[str, object]] = [{"params": logits, "lr": config.logit_lr}]
    if config.mode == "joint":
        yield [*groups, {"params": others, "lr": config.weight_lr}]
        return
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield groups
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
