"""prune_finetune: from a dense model to a pruned and trained one, in one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.data.batch_loss import LossFunction
from stochprune.masks.select import check_cut
from stochprune.nn import convert
from stochprune.nn.harden import cut, masks_to_cut
from stochprune.nn.selection import Selectors, wanted
from stochprune.runs.run import run_folder
from stochprune.scores import by_output
from stochprune.training.batch_norm import recompute_statistics
from stochprune.training.config import FinetuneConfig, WeightConfig
from stochprune.training.finetune import finetune
from stochprune.training.loop import Loader
from stochprune.training.options import LoopOptions
from stochprune.training.pruning import Pruned
from stochprune.training.starts import at_cut, start_masks
from stochprune.training.training import Training
from stochprune.training.weights import train_weights

METHOD = FinetuneConfig(epochs=18, budget_schedule="cubic", start="score")
"""The mask fine-tuning of :func:`prune_finetune` without a configuration."""
N_OF_M = dataclasses.replace(METHOD, start="mask")
"""The same for N:M patterns. Their masks keep n of m weights from the first step on, so they start at the cut."""


@checked
def prune_finetune(
    model: nn.Module,
    train_loader: Loader,
    sparsity: float,
    *,
    score: str = "magnitude",
    scope: str = "global",
    pattern: str | None = None,
    exclude: Selectors | None = None,
    config: FinetuneConfig | None = None,
    weights: WeightConfig | None = None,
    loss_fn: LossFunction = F.cross_entropy,
    out: str | Path | None = None,
    callbacks: Sequence[object] = (),
    options: LoopOptions | None = None,
) -> nn.Module:
    """Prune a trained model by a score, fine-tune the mask, cut it, and train the weights that are left, in place.

    A score chooses the first keep probabilities, :func:`stochprune.finetune` trains them together with the weights,
    :func:`stochprune.harden` keeps the most probable weights, one pass over the data computes the running statistics of
    batch norm again, and :func:`stochprune.training.train_weights` trains the weights. By default the budget, the sum
    of the probabilities, falls to the number of weights to keep, so that the cut changes little. With a constant budget
    the last step matters: directly after the cut the error is high.

    Args:
        model: a dense model, usually trained. With random weights this is pruning at initialisation.
        train_loader: as for :func:`stochprune.finetune`, iterated again in each epoch.
        sparsity: the fraction of the scored weights to prune, in [0, 1); with a pattern, of the rows or blocks.
        score: a name of :mod:`stochprune.scores`, such as ``magnitude``, ``snip`` or ``random``.
        scope: ``global``, ``layer`` or ``row``, see :func:`stochprune.masks.from_scores`; of both cuts.
        pattern: None prunes single weights; ``"rows"`` prunes whole outputs and filters, which
            :func:`stochprune.shrink` then removes; see :func:`stochprune.convert`.
        exclude: shell patterns on weight names, or types: these layers stay dense.
        config: of the mask fine-tuning; its seed is also that of the score and of the masks. Its ``start`` chooses the
            first keep probabilities, and a cubic budget falls to ``sparsity``, in each layer unless the scope is
            ``global``. Default: 18 epochs with a cubic budget, from probabilities by the score; those of an N:M
            pattern start from the score's mask.
        weights: of the weight training. Default: the rate of the fine-tuning for the weights, and as many epochs; a
            third of them after a cubic budget.
        loss_fn: a function of (model(x), y) that returns a scalar.
        out: if given, both trainings keep their checkpoints in folders there, and the same call continues after a kill;
            pass the model as it was at the start.
        callbacks, options: of both trainings, see :func:`stochprune.finetune`. Loggers write a file for each.

    Returns:
        The model: plain layers whose pruned weights are exactly 0, in the mode (train or eval) that it had.

    Raises:
        TypeError: an argument of another type, or a batch that the model does not take.
        ValueError: an unknown score, a value outside its range, a layer left without weights; see also the functions
            named above.
        FloatingPointError: a loss is not finite.
        CheckpointError: a checkpoint is damaged or of another run, or another process is using the folder.
    """
    config = config or (N_OF_M if pattern is not None and ":" in pattern else METHOD)
    epochs = config.epochs if config.budget_schedule == "constant" else config.epochs // 3
    weights = weights or WeightConfig(epochs, config.weight_lr, config.checkpoint_every)
    check_cut("prune_finetune", sparsity, scope)
    config = at_cut(config, sparsity, scope)
    training = model.training
    ways = Training(loss_fn, None if out is None else Path(out), "", callbacks, options or LoopOptions())
    scored = ways.score(score, model, train_loader, sparsity, config.seed)
    chosen = {name: value for name, value in scored.items() if wanted(model, [name], None, exclude)}
    start = by_output(model, start_masks(by_output(model, chosen), sparsity, config, scope=scope, pattern=pattern))
    found = tune_and_cut(model, train_loader, start, sparsity, config, ways, scope=scope, pattern=pattern)
    recompute_statistics(found.model, train_loader, ways)
    # Inside that of the fine-tuning, because after another one, such as to another sparsity, other weights are trained.
    folder = None if out is None else run_folder(run_folder(out, "finetune", config), "weights", weights)
    train_weights(
        found.model,
        train_loader,
        weights,
        masks=found.masks,
        loss_fn=loss_fn,
        folder=folder,
        callbacks=callbacks,
        options=options,
    )
    return found.model.train(training)


def tune_and_cut(
    model: nn.Module,
    loader: Loader,
    start: Mapping[str, Tensor],
    sparsity: float,
    config: FinetuneConfig,
    training: Training,
    *,
    scope: str = "global",
    pattern: str | None = None,
    logits_dtype: torch.dtype | None = None,
    allow_empty: bool = False,
) -> Pruned:
    """Convert a model at the start of a configuration, fine-tune its masks and cut them, in place.

    Args:
        start: masks or keep probabilities, see :func:`stochprune.training.starts.start_masks`.
        config: from :func:`stochprune.training.starts.at_cut`.
        training: its ``folder`` is that of all runs.
        allow_empty: the cut may leave a layer without weights.
    """
    model = convert(model, start, pattern=pattern, seed=config.seed, logits_dtype=logits_dtype)
    history = finetune(model, loader, config, out=training.folder, **training.arguments).history
    left = None if pattern and ":" in pattern else sparsity
    masks = masks_to_cut(model, left, scope, allow_empty=allow_empty)
    return Pruned(cut(model, masks), masks, history)
