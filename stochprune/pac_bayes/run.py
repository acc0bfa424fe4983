"""A run from a data set to certificates: of the prior itself as a control, and of its posteriors."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from stochprune import data, models
from stochprune.arguments import checked
from stochprune.data.splits import split
from stochprune.pac_bayes.certificate import Certificate
from stochprune.pac_bayes.certify import certify, mean_loss
from stochprune.pac_bayes.config import RunConfig
from stochprune.pac_bayes.families import check_family, make_posterior
from stochprune.pac_bayes.posterior import Posterior
from stochprune.pac_bayes.prior import Prior, train_prior
from stochprune.pac_bayes.self_bound import self_bound
from stochprune.pac_bayes.verify import CONFIGURATION, CONTROL, counts, rows
from stochprune.runs.device import device_of
from stochprune.runs.files import save_tensors, write_json
from stochprune.runs.folder import claim
from stochprune.runs.results import versions
from stochprune.training.config import digest
from stochprune.training.progress import ProgressBar

TEST_DRAWS = 5
"""Networks whose mean error on the test set is reported beside a certificate."""


@checked
def run_certify(
    config: RunConfig,
    *,
    data_dir: Path | None = None,
    out: Path = Path("runs"),
    device: str | torch.device = "cpu",
) -> tuple[Path, dict[str, Any]]:
    """Train a prior, learn posteriors from it, and certify all of them on the same examples.

    Choices are counted. Each family of posteriors has a prior of its own, so ``delta`` is divided by the number of
    families. ``delta_draws`` is divided by the number of certificates, controls included. So you may choose any of the
    certificates afterwards.

    A run on a GPU has the same folder, networks and examples of each draw; only the losses differ by rounding.

    Returns:
        The folder ``out/certify-<data>-<model>-<digest>``, and what is written to ``results.json`` there:
        ``configuration``, ``versions`` and ``rows``, one a certificate: family, objective, bound, mean loss, bounded
        empirical risk, KL in all and by layer, test error of the stochastic network, and the history of the learning.
        Beside it, for each row, the certificate ``<family>-<objective>.json`` and the posterior, ``.pt``.

    Raises:
        ValueError: an unknown data set, model, family or device, and what the parts raise.
        CheckpointError: a file in the folder that cannot be read, or another process is using the folder.
    """
    run = Run(config, data_dir, device)
    folder = out / f"certify-{config.data}-{config.model}-{digest(config)}"
    with claim(folder):
        write_json(folder / CONFIGURATION, dataclasses.asdict(config))
        prior = run.prior(folder)
        found = []
        for family, objective in rows(config):
            certificate, history = run.certificate(prior, family, objective, folder)
            certificate.save(folder / f"{family}-{objective}.json")
            row = {**certificate.notes, "m": certificate.m, **certificate.account(), "kl": certificate.kl}
            found.append(row | {"history": history})
        results = {"configuration": dataclasses.asdict(config), "versions": versions(run.device), "rows": found}
        write_json(folder / "results.json", results)
    return folder, results


class Run:
    """The data, the networks and the certificates of a configuration, on a device.

    Raises:
        ValueError: an unknown data set, model, family or device.
    """

    def __init__(self, config: RunConfig, data_dir: Path | None, device: str | torch.device) -> None:
        self.config, self.device = config, device_of(device)
        for family in config.posteriors:
            check_family(family)
        dataset = data.load(config.data, data_dir, standardised=False)
        self.model = models.build(config.model, dataset.shape, dataset.num_classes, config.seed).to(self.device)
        parts = split(dataset.train_x, dataset.train_y, config.prior.prior_fraction, config.seed)
        self.known = None if parts.prior is None else parts.prior.to(self.device)
        self.part = parts.certify.to(self.device)
        self.test_x, self.test_y = parts.scaled(dataset.test_x).to(self.device), dataset.test_y.to(self.device)

    def prior(self, folder: Path) -> Prior:
        """Train the prior; ``prior.pt`` and its checkpoint lie in ``folder``."""
        with ProgressBar("prior: training") as bar:
            prior = train_prior(
                copy.deepcopy(self.model),
                self.known,
                self.config.prior,
                seed=self.config.seed,
                folder=folder / "prior",
                callbacks=[bar],
            )
        save_tensors(folder / "prior.pt", prior.model.state_dict())
        return prior

    def certificate(
        self, prior: Prior, family: str, objective: str, folder: Path
    ) -> tuple[Certificate, list[dict[str, float]]]:
        """Learn one posterior and certify it; it lies in ``folder``, with the checkpoints.

        Args:
            objective: ``CONTROL`` for the prior itself.

        Returns:
            The certificate and the history of the learning.
        """
        config, name = self.config, f"{family}-{objective}"
        posterior, history = self._learn(prior, family, objective, folder)
        test_error = mean_loss(posterior, self.test_x, self.test_y, TEST_DRAWS, config.seed)
        save_tensors(folder / f"{name}.pt", posterior.model.state_dict())
        priors, posteriors = counts(config)
        with Progress(f"{name}: certifying", config.certify.draws) as bar:
            certificate = certify(
                posterior,
                self.part,
                config.certify,
                priors=priors,
                posteriors=posteriors,
                seed=config.seed,
                data=config.data,
                folder=folder / name,
                callbacks=[bar],
            )
        notes = {"family": family, "objective": objective, "test_error": test_error}
        configuration = json.loads(json.dumps(dataclasses.asdict(config)))  # as it is read: lists, no tuples
        return dataclasses.replace(certificate, configuration=configuration, notes=notes), history

    def _learn(
        self, prior: Prior, family: str, objective: str, folder: Path
    ) -> tuple[Posterior, list[dict[str, float]]]:
        if objective == CONTROL:
            return make_posterior(prior, family), []
        learning = dataclasses.replace(self.config.self_bound, objective=objective)  # type: ignore[arg-type]
        with ProgressBar(f"{family}-{objective}: learning") as bar:
            found = self_bound(
                prior,
                self.part,
                learning,
                family=family,
                delta=self.config.certify.delta,
                seed=self.config.seed,
                out=folder,
                callbacks=[bar],
            )
        return found.posterior, found.history


class Progress(ProgressBar):
    """Shows the draws, and the certificate from those so far."""

    def on_draws(self, done: int, total: int, bound: float) -> None:
        self._progress.update(self._task, completed=done, loss=f"certificate {bound:.4g}")
