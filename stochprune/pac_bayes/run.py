"""From a data set to certificates: the prior, its own certificate as the control, and those of its posteriors."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stochprune import data, models
from stochprune.data import Dataset
from stochprune.data.splits import Part, Split, split
from stochprune.nn import convert
from stochprune.pac_bayes.certificate import Certificate, load_certificate
from stochprune.pac_bayes.certify import certify, draw_loss, mean_loss, model_digest
from stochprune.pac_bayes.config import CertifyConfig, PriorConfig, RunConfig, SelfBoundConfig
from stochprune.pac_bayes.families import check_family, make_posterior
from stochprune.pac_bayes.posterior import Posterior
from stochprune.pac_bayes.prior import Prior, train_prior
from stochprune.pac_bayes.self_bound import self_bound
from stochprune.runs.device import device_of
from stochprune.runs.files import load_tensors, read_json, save_tensors, write_json
from stochprune.runs.folder import claim
from stochprune.runs.results import versions
from stochprune.training.config import digest
from stochprune.training.progress import ProgressBar

CONTROL = "prior"
"""In the place of an objective: the prior's own certificate, at KL = 0, on the same examples."""
TEST_DRAWS = 5
"""Networks whose mean error on the test set is reported beside a certificate."""


def run_certify(
    config: RunConfig,
    *,
    data_dir: Path | None = None,
    out: Path = Path("runs"),
    device: str | torch.device = "cpu",
) -> tuple[Path, dict[str, Any]]:
    """Train a prior, learn posteriors from it, and certify all of them on the same examples.

    Choices are counted: each family of posteriors has a prior of its own, over other things, so ``delta`` is divided
    by the number of families; ``delta_draws`` is divided by the number of certificates, controls included. So any of
    the certificates may be picked afterwards.

    The run may be on a GPU: the folder, the networks drawn and the examples of each draw are the same, their losses up
    to rounding.

    Returns:
        The folder ``out/certify-<data>-<model>-<digest>``, and what is written to ``results.json`` there:
        ``configuration``, ``versions`` and ``rows``, one a certificate: family, objective, bound, mean loss, bounded
        empirical risk, KL in all and by layer, test error of the stochastic network, and the history of the learning.
        Beside it, for each row, the certificate ``<family>-<objective>.json`` and the posterior, ``.pt``.

    Raises:
        ValueError: an unknown data set, model, family or device, and what the parts raise.
        CheckpointError: a file in the folder that cannot be read, or another process is using the folder.
    """
    place = device_of(device)
    for family in config.posteriors:
        check_family(family)
    dataset = data.load(config.data, data_dir, standardised=False)
    model = models.build(config.model, dataset.shape, dataset.num_classes, config.seed).to(place)
    parts = split(dataset.train_x, dataset.train_y, config.prior.prior_fraction, config.seed)
    folder = out / f"certify-{config.data}-{config.model}-{digest(config)}"
    with claim(folder):
        return folder, _certified(config, dataset, parts, model, folder)


def _certified(config: RunConfig, dataset: Dataset, parts: Split, model: nn.Module, folder: Path) -> dict[str, Any]:
    place = next(model.parameters()).device
    write_json(folder / "configuration.json", dataclasses.asdict(config))
    known = None if parts.prior is None else parts.prior.to(place)
    part, test_x, test_y = parts.certify.to(place), parts.scaled(dataset.test_x).to(place), dataset.test_y.to(place)
    with ProgressBar("prior: training") as bar:
        prior = train_prior(model, known, config.prior, seed=config.seed, folder=folder / "prior", callbacks=[bar])
    save_tensors(folder / "prior.pt", prior.model.state_dict())
    rows = []
    for family, objective in itertools.product(config.posteriors, (CONTROL, *config.objectives)):
        history: list[dict[str, float]] = []
        name = f"{family}-{objective}"
        if objective == CONTROL:
            posterior = make_posterior(prior, family)
        else:
            learning = dataclasses.replace(config.self_bound, objective=objective)  # type: ignore[arg-type]
            with ProgressBar(f"{name}: learning") as bar:
                found = self_bound(
                    prior,
                    part,
                    learning,
                    family=family,
                    delta=config.certify.delta,
                    seed=config.seed,
                    out=folder,
                    callbacks=[bar],
                )
            posterior, history = found.posterior, found.history
        test_error = mean_loss(posterior, test_x, test_y, TEST_DRAWS, config.seed)
        save_tensors(folder / f"{name}.pt", posterior.model.state_dict())
        with Progress(f"{name}: certifying", config.certify.draws) as bar:
            certificate = certify(
                posterior,
                part,
                config.certify,
                priors=len(config.posteriors),
                posteriors=len(config.posteriors) * (1 + len(config.objectives)),
                seed=config.seed,
                data=config.data,
                folder=folder / name,
                callbacks=[bar],
            )
        certificate.notes.update(family=family, objective=objective, test_error=test_error)
        certificate.save(folder / f"{name}.json")
        rows.append({**certificate.notes, "m": len(part), **certificate.account(), "kl": certificate.kl})
        rows[-1]["history"] = history
    results = {"configuration": dataclasses.asdict(config), "versions": versions(place), "rows": rows}
    write_json(folder / "results.json", results)
    return results


class Progress(ProgressBar):
    """Shows the draws, and the certificate from those so far."""

    def on_draws(self, done: int, total: int, bound: float) -> None:
        self._progress.update(self._task, completed=done, loss=f"certificate {bound:.4g}")


@dataclasses.dataclass(frozen=True)
class Replay:
    """One Monte Carlo draw of a certificate, drawn again.

    Attributes:
        stated, found: its loss in the certificate and now.
        kept: by weight name, how many weights its mask keeps, and of how many; without layers that have no mask.
        examples: number of examples it saw.
    """

    stated: float
    found: float
    kept: dict[str, tuple[int, int]]
    examples: int


def replay(path: Path, draw: int, *, data_dir: Path | None = None, device: str | torch.device = "cpu") -> Replay:
    """Draw one of a certificate's networks again, and its loss on the examples of that draw.

    Args:
        path: the certificate, in the folder of its run.
        draw: the number of the draw, from 0.
        device: need not be that of the run.

    Raises:
        ValueError: no such draw or device, or data, a posterior or divergences that are not those of the certificate.
        CheckpointError: a file of the run is missing or damaged.
    """
    certificate = load_certificate(path)
    if not 0 <= draw < certificate.draws:
        raise ValueError(f"{path} has the draws 0 .. {certificate.draws - 1}, got {draw}")
    posterior, part = _rebuild(path, certificate, data_dir, device_of(device))
    found = draw_loss(posterior, part, certificate, draw)
    unit = certificate.unit
    kept = posterior.kept(certificate.mask_seed, draw)
    return Replay(certificate.losses[draw] * unit, found * unit, kept, certificate.draw_examples or len(part))


def _rebuild(
    path: Path, certificate: Certificate, data_dir: Path | None, device: torch.device
) -> tuple[Posterior, Part]:
    """The posterior and the examples of a certificate, checked by their digests."""
    config = load_configuration(path.parent / "configuration.json")
    dataset = data.load(config.data, data_dir, standardised=False)
    part = split(dataset.train_x, dataset.train_y, config.prior.prior_fraction, config.seed).certify
    if part.digest != certificate.certified:
        raise ValueError(f"the data differ from those of {path}: digest {part.digest}, not {certificate.certified}")
    plain = models.build(config.model, dataset.shape, dataset.num_classes, config.seed)
    model = convert(plain, include=config.prior.include, seed=config.seed)
    _load(model, path.parent / "prior.pt")
    posterior = make_posterior(Prior(model.to(device), (), config.prior.sigma), certificate.notes["family"])
    _load(posterior.model, path.with_suffix(".pt"))
    if model_digest(posterior) != certificate.model:
        raise ValueError(f"{path.with_suffix('.pt')} is not the posterior of {path}")
    for name, value in posterior.kl().items():
        stated = certificate.kl.get(name, math.nan)
        if not math.isclose(value.item(), stated, rel_tol=1e-6, abs_tol=1e-9):
            raise ValueError(f"{path} states a divergence of {stated:.9g} nats for {name}, found {value.item():.9g}")
    return posterior, part.to(device)


def _load(model: nn.Module, path: Path) -> None:
    state = load_tensors(path, "network")
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{path} belongs to another network") from error


def load_configuration(path: Path) -> RunConfig:
    """The configuration of a run from its ``configuration.json``.

    Raises:
        ValueError: it is no configuration of a run.
        CheckpointError: see :func:`stochprune.runs.read_json`.
    """
    content = read_json(path, "configuration")
    try:
        content["prior"] = PriorConfig(**content["prior"])
        content["self_bound"] = SelfBoundConfig(**content["self_bound"])
        content["certify"] = CertifyConfig(**content["certify"])
        for name in ("posteriors", "objectives"):
            content[name] = tuple(content[name])
        return RunConfig(**content)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the configuration of a certificate's run") from error
