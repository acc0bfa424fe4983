"""Repetition of a certificate's draws from the files of its run."""

from __future__ import annotations

import dataclasses
import math
import secrets
from pathlib import Path

import torch
from torch import nn

from stochprune import data, models
from stochprune.arguments import checked
from stochprune.data.splits import Subset, split
from stochprune.nn import convert
from stochprune.pac_bayes.certificate import Certificate
from stochprune.pac_bayes.certify import draw_loss, draws_together, model_digest, trial_of
from stochprune.pac_bayes.families import make_posterior
from stochprune.pac_bayes.posterior import Posterior
from stochprune.pac_bayes.prior import Prior
from stochprune.pac_bayes.verify import load_certificate, parsed_configuration
from stochprune.runs.device import device_of
from stochprune.runs.files import load_tensors

SAMPLE = 50
"""Number of draws that are repeated besides the requested one."""


@dataclasses.dataclass(frozen=True)
class Replay:
    """Repeated Monte Carlo draws of a certificate.

    Attributes:
        stated, found: the loss of the requested draw, in the certificate and now.
        kept: by weight name, how many weights its mask keeps, and of how many; without layers that have no mask.
        examples: the number of its examples.
        sample: stated and found losses of further draws, chosen at random, by the number of the draw.
    """

    stated: float
    found: float
    kept: dict[str, tuple[int, int]]
    examples: int
    sample: dict[int, tuple[float, float]]


@checked
def replay(
    path: Path,
    draw: int,
    *,
    sample: int = SAMPLE,
    data_dir: Path | None = None,
    device: str | torch.device = "cpu",
) -> Replay:
    """Sample some of a certificate's networks again, and compute their losses on the examples of these draws.

    Data, both parts, prior, posterior and KL are computed again from the files of the run and compared with the
    certificate. The network is tested as before it was certified. Besides the requested draw, others are repeated that
    the operating system's random numbers choose, so that nobody knows in advance which losses are checked. If a share f
    of the losses is false, a sample of n misses all false ones with probability (1 - f)^n.

    Args:
        path: the certificate, in the folder of its run.
        draw: the number of a draw, from 0.
        sample: how many other draws to repeat; all of them if there are fewer.
        device: may differ from the device of the run.

    Raises:
        ValueError: the certificate does not verify; no such draw or device; data, a prior, a posterior or KL values
            that differ from those of the certificate.
        CheckpointError: a file of the run is missing or damaged.
        FileNotFoundError: files of the data set are missing.
    """
    certificate = load_certificate(path)
    if not 0 <= draw < certificate.draws:
        raise ValueError(f"{path} has the draws 0 .. {certificate.draws - 1}, got {draw}")
    if sample < 0:
        raise ValueError(f"replay: sample must be at least 0, got {sample}")
    posterior, part = _rebuild(path, certificate, data_dir, device_of(device))
    trial = trial_of(posterior, part, certificate)
    trial.start()
    others = [t for t in range(certificate.draws) if t != draw]
    chosen = sorted(secrets.SystemRandom().sample(others, min(sample, len(others))))
    together = draws_together(posterior, part, certificate)
    losses = {t: draw_loss(posterior, part, certificate, t, together) for t in (draw, *chosen)}
    trial.end()
    pairs = {t: (certificate.losses[t] * certificate.unit, loss * certificate.unit) for t, loss in losses.items()}
    kept = posterior.kept(certificate.mask_seed, draw)
    return Replay(*pairs.pop(draw), kept, certificate.draw_examples or len(part), pairs)


def _rebuild(
    path: Path, certificate: Certificate, data_dir: Path | None, device: torch.device
) -> tuple[Posterior, Subset]:
    """Return the posterior and the examples of a certificate, checked by their digests."""
    if certificate.configuration is None:
        raise ValueError(f"{path} carries no configuration of a run, so that there is nothing to rebuild it from")
    config = parsed_configuration(certificate.configuration, path)
    dataset = data.load(config.data, data_dir, standardised=False)
    parts = split(dataset.train_x, dataset.train_y, config.prior.prior_fraction, config.seed)
    if parts.certify.digest != certificate.certified or len(parts.certify) != certificate.m:
        raise ValueError(
            f"the data differ from those of {path}: the part that certifies has {len(parts.certify)} examples and the "
            f"digest {parts.certify.digest}, not {certificate.m} and {certificate.certified}"
        )
    plain = models.build(config.model, dataset.shape, dataset.num_classes, config.seed)
    model = convert(plain, include=config.prior.include, seed=config.seed)
    _load(model, path.parent / "prior.pt")
    prior = Prior(model.to(device), () if parts.prior is None else (parts.prior,), config.prior.sigma)
    if prior.digest != certificate.prior:
        raise ValueError(f"{path.parent / 'prior.pt'} is not the prior of {path}: its digest is {prior.digest}")
    posterior = make_posterior(prior, certificate.notes["family"])
    _load(posterior.model, path.with_suffix(".pt"))
    if model_digest(posterior) != certificate.model:
        raise ValueError(f"{path.with_suffix('.pt')} is not the posterior of {path}")
    posterior.require_paid("replay")
    found = posterior.kl()
    if set(found) != set(certificate.kl):
        raise ValueError(
            f"{path} states the KL of {', '.join(certificate.kl)}, but its posterior has {', '.join(found)}"
        )
    for name, value in found.items():
        stated = certificate.kl[name]
        if not math.isclose(value.item(), stated, rel_tol=1e-6, abs_tol=1e-9):
            raise ValueError(f"{path} states a KL of {stated:.9g} nats for {name}, but found {value.item():.9g}")
    return posterior, parts.certify.to(device)


def _load(model: nn.Module, path: Path) -> None:
    state = load_tensors(path, "network")
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} belongs to another network: {error}") from error
