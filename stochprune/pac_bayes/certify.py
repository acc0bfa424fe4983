"""Risk certificates by Monte Carlo over networks sampled from a posterior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stochprune import backends
from stochprune.arguments import checked
from stochprune.data.splits import Subset, require_unseen
from stochprune.nn import batched_samples
from stochprune.pac_bayes.certificate import FINE, Certificate, mask_seed
from stochprune.pac_bayes.config import CertifyConfig
from stochprune.pac_bayes.digests import tensor_digests
from stochprune.pac_bayes.loss import bounded_cross_entropy, zero_one
from stochprune.pac_bayes.posterior import Posterior
from stochprune.pac_bayes.trial import Trial
from stochprune.runs.checkpoint import Checkpoint
from stochprune.runs.digests import json_digest, structure
from stochprune.runs.files import CheckpointError, require
from stochprune.runs.results import versions
from stochprune.runs.run import open_run
from stochprune.seeding import generator

P_MIN = 1e-4
"""Minimum probability in the certified cross-entropy."""
_BATCH = 4096
"""Maximum number of examples in a forward pass, over all its draws."""
_WEIGHTS = 1 << 26
"""Maximum number of random weights in a forward pass, over all its draws."""
DRAWS = {"cpu": 8, "cuda": 64}
"""Maximum number of draws in a forward pass. On the CPU the activations of more draws do not fit into the caches."""
_ALONE = 8
"""Draws that are run alone, to check whether draws may share a forward pass."""
_CHUNKS = 50
"""Maximum number of checkpoints of a run; each also reports the running certificate."""


@checked
def certify(
    posterior: Posterior,
    part: Subset,
    config: CertifyConfig | None = None,
    *,
    priors: int = 1,
    posteriors: int = 1,
    seed: int = 0,
    data: str = "",
    folder: Path | None = None,
    callbacks: Sequence[object] = (),
) -> Certificate:
    """Certify the risk of a stochastic network.

    Draw t consists of one network (the contract's draw t, at a seed of its own) and ``draw_examples`` examples, sampled
    uniformly with replacement from the m certifying examples. Its loss is the mean over them. Given the posterior and
    the examples, the draws are independent and identically distributed in [0, 1], and their expectation is the
    posterior's mean loss over the m examples. The bounds of :mod:`stochprune.bounds.monte_carlo` assume nothing else.
    The networks must be independent of the posterior, whose training also sampled networks. So the seed of the masks is
    a hash of ``seed``, which no training uses. Small batches of many draws share a forward pass
    (:func:`stochprune.nn.batched_samples`) if sharing it does not change their outputs.

    The certificate is for the loss of one example at a time. Before the draws the network is tested on a few examples,
    alone and in batches (:class:`stochprune.pac_bayes.trial.Trial`); after the draws it is tested alone again. With
    ``draw_examples=1`` no forward pass has two examples, so the certificate holds whatever the network does with a
    batch.

    Args:
        posterior: from :func:`stochprune.pac_bayes.self_bound`, or the prior itself as a posterior, from
            :func:`stochprune.pac_bayes.make_posterior`.
        part: the certifying examples, of which the prior has seen none.
        config: the options, fixed before anything is sampled.
        priors: the number of priors among which one is, or will be, chosen after looking at certificates.
        posteriors: the number of posteriors among which one is, or will be, chosen likewise.
        seed: 0 .. 2^64 - 1.
        data: a name of the examples for the certificate.
        folder: if given, the draws so far are stored there, and a run that was killed continues from them.
        callbacks: objects with the optional method ``on_draws(done, total, bound)``, where ``bound`` is computed from
            the draws so far; with ``betting`` it holds at all these times at once.

    Raises:
        ValueError: the prior has seen one of the examples, or was edited; the posterior differs from it in a tensor
            that the KL does not count; the network's output for an example depends on other examples or on earlier
            forward passes; labels that are not classes; counts below 1; a KL that is not finite.
        CheckpointError: the folder's checkpoint is damaged or of another run, or another process is using the folder.
    """
    config = config or CertifyConfig()
    for name, count in (("priors", priors), ("posteriors", posteriors)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"certify: {name} must be an integer of at least 1, got {count!r}: count all looked at")
    posterior.require_paid("certify")
    require_unseen(part, posterior.prior.seen)
    with torch.no_grad():  # of the logits as they are now, see MaskedLinear.divergence
        kl = {name: value.item() for name, value in posterior.kl().items()}
    if not math.isfinite(math.fsum(kl.values())):
        raise ValueError(f"certify: the KL from the prior is not finite: {kl}; use a lower learning rate")
    posterior.eval().estimate_by("straight_through")
    per_draw = config.draw_examples or len(part)
    certificate = Certificate(
        m=len(part),
        delta=config.delta,
        delta_draws=config.delta_draws,
        priors=priors,
        posteriors=posteriors,
        kl=kl,
        loss=config.loss,
        monte_carlo=config.monte_carlo,
        planned=config.draws,
        unit=1 / per_draw if config.loss == "zero_one" else FINE,
        losses=[],
        draw_examples=config.draw_examples,
        seed=seed,
        mask_seed=mask_seed(seed),
        data=data,
        dataset=part.dataset,
        prior=posterior.prior.digest,
        model=model_digest(posterior),
        certified=part.digest,
        prior_saw=[seen.digest for seen in posterior.prior.seen],
        prior_sizes=[len(seen) for seen in posterior.prior.seen],
        versions={**versions(part.x.device), "threads": torch.get_num_threads(), "backend": _backend(posterior)},
    )
    with open_run(config, folder) as run:
        network = f"{certificate.prior} {certificate.model} {structure(posterior.model)}"
        origin = f"{network} {part.digest} {seed} {priors} {posteriors}"
        if (checkpoint := run.checkpoint(1, origin)) is not None:
            certificate.losses.extend(_former(checkpoint, certificate))
        trial = trial_of(posterior, part, certificate)
        trial.start()
        together = draws_together(posterior, part, certificate)
        pause = together * math.ceil(config.draws / _CHUNKS / together)
        while (done := certificate.draws) < config.draws:
            # Up to the next multiple, because a killed run may have shared forward passes among other numbers of draws.
            certificate.losses.extend(draw_losses(posterior, part, certificate, done, together - done % together))
            done = certificate.draws
            if done % pause == 0 or done == config.draws:
                if checkpoint is not None:
                    checkpoint.save({"losses": certificate.losses})
                for callback in callbacks:
                    if hasattr(callback, "on_draws"):
                        callback.on_draws(done, config.draws, certificate.bound)
        trial.end()
    return certificate


def _backend(posterior: Posterior) -> str:
    """Return the name of the backend that samples the networks; several names if layers differ in dtype."""
    return ", ".join(sorted({backends.resolve(layer.weight).NAME for layer in posterior.layers.values()}))


def _former(checkpoint: Checkpoint, certificate: Certificate) -> list[int]:
    """Return the losses of the draws that were made before the run was killed."""
    payload = checkpoint.load()
    if payload is None:
        return []
    losses: list[int] = require(payload, {"losses": list[int]}, checkpoint.path)["losses"]
    most = round(1 / certificate.unit)
    if len(losses) > certificate.planned or not all(0 <= loss <= most for loss in losses):
        raise CheckpointError(
            f"{checkpoint.path} must contain at most {certificate.planned} losses, each an integer in 0 .. {most}"
        )
    return losses


def trial_of(posterior: Posterior, part: Subset, certificate: Certificate) -> Trial:
    """Return the trial of a network, which runs before the losses of a certificate are computed."""
    return Trial(posterior, part, min(certificate.draw_examples or len(part), _BATCH), certificate.seed)


def draws_together(posterior: Posterior, part: Subset, certificate: Certificate) -> int:
    """Return how many draws share a forward pass; a resumed run and a replay get the same number."""
    weights = sum(layer.weight.numel() for layer in posterior.layers.values())
    examples = certificate.draw_examples or len(part)
    if examples == 1:  # then no forward pass may have two examples
        return 1
    most = DRAWS.get(next(posterior.parameters()).device.type, 1)
    together = min(most, _BATCH // examples, _WEIGHTS // max(1, weights), certificate.planned // _CHUNKS)
    if together < 2 or not draws_apart(posterior, *draw_examples(part, certificate, 0, together)):
        return 1
    return together


def draws_apart(posterior: Posterior, x: Tensor, y: Tensor) -> bool:
    """Return True if sharing a forward pass does not change the outputs of the networks, up to rounding.

    It changes them if the first dimension of a layer is not the batch but, for example, positions or time. The check
    compares the losses of the first networks on x [D, n, ...] and y [D, n], alone and in a forward pass of all. It
    allows less than a hundredth of the difference between one network and the next.
    """
    draws = range(min(len(x), _ALONE))

    def alone(shift: int) -> Tensor:
        return torch.cat([network_losses(posterior, x[[t]], y[[t]], "cross_entropy", 0, t + shift) for t in draws])

    try:
        shared = network_losses(posterior, x, y, "cross_entropy", 0, 0)[: len(draws)]
    except (ValueError, RuntimeError):
        return False
    single = alone(0)
    return bool((shared - single).abs().sum() < (alone(1) - single).abs().sum() / 100)


def draw_loss(posterior: Posterior, part: Subset, certificate: Certificate, t: int, together: int | None = None) -> int:
    """Return the loss of draw t in units of the certificate, from the same forward pass of ``together`` draws."""
    together = together or draws_together(posterior, part, certificate)
    first = t - t % together
    return draw_losses(posterior, part, certificate, first, together)[t - first]


def draw_losses(posterior: Posterior, part: Subset, certificate: Certificate, first: int, together: int) -> list[int]:
    """Return the losses of the draws from ``first`` on, in units of the certificate, rounded up."""
    draws = min(together, certificate.planned - first)
    x, y = draw_examples(part, certificate, first, draws)
    losses = network_losses(posterior, x, y, certificate.loss, certificate.mask_seed, first)
    if certificate.loss == "zero_one":
        return [int(wrong) for wrong in losses.sum(1).tolist()]
    worst = round(1 / FINE)
    return [worst if math.isnan(m) else min(worst, math.ceil(m / FINE)) for m in losses.mean(1).tolist()]


@torch.no_grad()
def network_losses(posterior: Posterior, x: Tensor, y: Tensor, loss: str, seed: int, first: int) -> Tensor:
    """Return losses [D, n], float64, of D networks from draw ``first`` on; each batch samples the networks again.

    Args:
        x: [D, n, ...], the examples of each network.
        y: [D, n], their labels.
    """
    found, draws = [], len(x)
    device = next(posterior.parameters()).device
    batch = max(1, _BATCH // draws)
    with batched_samples(posterior.model, draws):
        for inputs, labels in zip(x.split(batch, 1), y.split(batch, 1), strict=True):
            posterior.at(seed, first)
            outputs = posterior(inputs.flatten(0, 1).to(device)).double()
            posterior.require_one_draw(first, draws)
            labels = labels.flatten().to(device)
            losses = zero_one(outputs, labels) if loss == "zero_one" else bounded_cross_entropy(outputs, labels, P_MIN)
            found.append(losses.unflatten(0, (draws, -1)))
    return torch.cat(found, 1)


def draw_examples(part: Subset, certificate: Certificate, first: int, draws: int) -> tuple[Tensor, Tensor]:
    """Return examples [draws, draw_examples, ...] and labels of the draws from ``first`` on, or all for each draw."""
    if not certificate.draw_examples:
        return part.x.expand(draws, *part.x.shape), part.y.expand(draws, -1)
    numbers = [
        generator(certificate.seed, "certify", "examples", t).integers(0, len(part), certificate.draw_examples)
        for t in range(first, first + draws)
    ]
    chosen = torch.from_numpy(np.stack(numbers)).to(part.x.device)
    return part.x[chosen], part.y[chosen]


def model_digest(posterior: Posterior) -> str:
    """Digest of the posterior's tensors, without the seeds and counters of its draws."""
    return json_digest(tensor_digests(posterior.model))


def mean_loss(posterior: Posterior, x: Tensor, y: Tensor, draws: int, seed: int) -> float:
    """Estimate the mean 0-1 loss on the examples with ``draws`` networks of the posterior; this is not a bound."""
    mask_seed = int(generator(seed, "estimate", "masks").integers(1 << 63))
    networks = [network_losses(posterior, x[None], y[None], "zero_one", mask_seed, t) for t in range(draws)]
    return torch.cat(networks).mean().item()
