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


@dataclasses.dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tuning came to.

    Attributes:
        history: one entry an epoch: ``epoch``, mean ``loss``, ``mean_keep`` (mean of q), ``flipped`` (weights on the
            other side of q = 1/2 than at the start) and ``budget_error`` (sum(q) / its start - 1).
        folder: the run's folder, with ``checkpoint.pt`` and ``results.json``; None if nothing was to be written.
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
    learning" (arXiv 2110.11804): each step draws one mask, each layer's from the step's own draw, and Adam follows an
    estimate of the gradient with respect to the logits of q and, in joint mode, the weights. sum(q) is held to its
    start (see :mod:`stochprune.training.budget`). Cut the result with :func:`stochprune.harden`.

    Args:
        model: a model from :func:`stochprune.convert`. Its layers take the estimator, temperature and seed of
            ``config``. Logits that require no gradient stay as they are, and outside of the budget.
        train_loader: batches (x, y): a ``DataLoader``, :class:`stochprune.data.Batches` or any iterable that can be
            iterated anew each epoch.
        loss_fn: of (model(x), y), a scalar.
        out: if given, the run is kept in the folder ``out/finetune-<digest of config>``: a checkpoint, from which the
            same call goes on bit for bit after a kill (pass the model as it was at the start), and the results.
            A model that draws from torch's own generator (dropout) is not resumed bit for bit.
        callbacks: objects with the optional methods ``on_step(state)`` and ``on_epoch(state)``, see
            :class:`stochprune.training.loop.State`; for example a :class:`stochprune.training.ProgressBar`.

    Raises:
        ValueError: no masked layer, none whose logits require gradients, an empty loader, a loss without a gradient, or
            logits that the budget cannot hold.
        FloatingPointError: the loss is not finite.
        CheckpointError: the folder's checkpoint is damaged or of another run, or another process is using the folder.
    """
    config = config or FinetuneConfig()
    layers = masked_layers(model)
    if not layers:
        raise ValueError("the model has no masked layer: make them with stochprune.convert(model, masks)")
    for layer in layers.values():
        layer.estimator, layer.temperature = config.estimator, config.temperature
        layer.mask_seed.fill_(rng.as_int64(config.seed))
    logits = [tensor for tensor in {layer.mask_logits: None for layer in layers.values()} if tensor.requires_grad]
    if not logits:
        raise ValueError("finetune: no mask_logits of the model require gradients: there is nothing to train")
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
            history = fit(
                model,
                train_loader,
                epochs=config.epochs,
                optimizer=torch.optim.Adam(groups),
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
    """The optimiser's groups; inside, weights that are not to be trained need no gradient."""
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
