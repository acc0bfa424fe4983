"""Self-bounded learning: a posterior that minimises a PAC-Bayes bound on its own risk."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from stochprune.arguments import checked
from stochprune.data.splits import Subset, require_unseen
from stochprune.pac_bayes.config import CertifyConfig, SelfBoundConfig
from stochprune.pac_bayes.families import make_posterior
from stochprune.pac_bayes.objective import NaturalGradient, Objective
from stochprune.pac_bayes.posterior import Posterior
from stochprune.pac_bayes.prior import Prior
from stochprune.runs.results import json_history
from stochprune.runs.run import open_run, run_folder
from stochprune.training.loop import fit
from stochprune.training.schedules import SCHEDULES, follow


@dataclasses.dataclass(frozen=True)
class SelfBoundResult:
    """The result of self-bounded learning.

    Attributes:
        history: one entry per epoch: ``epoch``, mean ``loss`` (the objective), mean ``risk`` (bounded cross-entropy),
            ``kl`` (nats), ``lam`` (of objective lambda) and ``kl <weight name>`` for each layer.
        folder: the run's folder, with ``checkpoint.pt`` and ``results.json``; None if nothing was written.
    """

    posterior: Posterior
    config: SelfBoundConfig
    history: list[dict[str, float]]
    folder: Path | None


@checked
def self_bound(
    prior: Prior,
    part: Subset,
    config: SelfBoundConfig | None = None,
    *,
    family: str = "masks",
    delta: float = CertifyConfig.delta,
    seed: int = 0,
    out: str | Path | None = None,
    callbacks: Sequence[object] = (),
) -> SelfBoundResult:
    """Minimise a bound on the risk of a stochastic network over its posterior, starting at the prior.

    This is our reading of Hayou, He and Dziugaite (arXiv 2110.11804), with the objectives of Perez-Ortiz et al. 2021
    (arXiv 2007.12911). Each step samples one network, computes the bounded cross-entropy r of a batch, and follows the
    gradient of f(r, KL(Q || P)) with m = ``len(part)``:

    ==========  ====================================================
    quadratic   (sqrt(r + B / 2) + sqrt(B / 2))^2
    lambda      r / (1 - l / 2) + B / (l (1 - l / 2)), l set to its optimum after each epoch
    classic     r + sqrt(B / 2)
    kl          kl^-1(r | B), by implicit differentiation
    ==========  ====================================================

    The steps follow the natural gradient of the KL (see :class:`stochprune.pac_bayes.objective.NaturalGradient`). A
    learning rate of 1 jumps to the minimum that one batch suggests; smaller rates average over batches.

    With the estimator ``local_reparameterisation`` a step samples pre-activations, for each example independently,
    instead of one network. The loss of an example then has its exact distribution under Gaussian weights of linear
    layers. Under masks (normal in the limit of many inputs) and convolutions (whose positions share weights) the
    distribution is approximate. This affects only the gradient: the returned posterior and its certificate sample
    networks.

    Args:
        prior: from :func:`stochprune.pac_bayes.train_prior`; it is not changed.
        part: the certifying examples, of which the prior has seen none.
        family: ``masks``: keep probabilities; ``gaussian``: weights; ``spike_and_slab``: both.
        delta: probability that the bound fails.
        seed: seed of the batches and of the sampled networks, 0 .. 2^64 - 1.
        out: if given, the folder ``out/self-bound-...`` stores the results and a checkpoint, from which the same call
            continues bit for bit after a kill.

    Raises:
        ValueError: the prior has seen one of the examples; an unknown family; a layer that the estimator
            ``local_reparameterisation`` does not support.
        FloatingPointError: the objective is not finite.
        CheckpointError: the folder's checkpoint is damaged or of another run, or another process is using the folder.
    """
    config = config or SelfBoundConfig()
    prior.require_unedited("self_bound")
    require_unseen(part, prior.seen)
    posterior = make_posterior(prior, family)
    posterior.at(seed, 0)
    posterior.estimate_by(config.estimator, config.temperature)
    loader = part.batches(config.batch_size, seed)
    steps = config.epochs * len(loader)
    objective = Objective(posterior, len(part), delta, config, steps=steps)
    optimizer = torch.optim.SGD([tensor for tensor, _ in posterior.curvatures()], lr=config.lr)
    follow(optimizer, SCHEDULES["cosine"], steps)
    folder = None if out is None else run_folder(out, f"self-bound-{family}", config, suffix=f"-seed{seed}")
    with open_run(config, folder, key=folder.name if folder else "") as run:
        history = fit(
            objective,
            loader,
            epochs=config.epochs,
            optimizer=optimizer,
            loss_fn=objective.loss,
            constraint=NaturalGradient(objective),
            checkpoint=run.checkpoint(config.checkpoint_every, objective, part.digest, str(delta)),
            callbacks=callbacks,
        )
        run.write({"family": family, "delta": delta, "seed": seed, "history": json_history(history)}, part.x.device)
    posterior.requires_grad_(False)
    posterior.estimate_by("straight_through")  # hard masks of one network, whatever the training sampled
    return SelfBoundResult(posterior, config, history, folder)
