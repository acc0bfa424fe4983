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
from stochprune.pac_bayes.families import make_posterior
from stochprune.pac_bayes.posterior import Posterior
from stochprune.pac_bayes.prior import Prior, train_prior
from stochprune.pac_bayes.self_bound import self_bound
from stochprune.pac_bayes.verify import CONFIGURATION, CONTROL, counts, rows
from stochprune.runs.device import device_of
from stochprune.runs.files import save_tensors, write_json
from stochprune.runs.progress import ProgressBar
from stochprune.runs.run import open_run, run_folder

TEST_DRAWS = 5
"""Networks whose mean error on the test set is reported beside a certificate."""


@dataclasses.dataclass(frozen=True)
class CertificateRow:
    """One certificate of a run; for its numbers see :class:`Certificate`.

    Attributes:
        objective: what was minimised; ``prior`` for the control, of which nothing is learnt.
        test_error: of the stochastic network, on the test set.
        kl: by weight, nats.
        history: of the learning.
    """

    family: str
    objective: str
    test_error: float
    m: int
    draws: int
    mean_loss: float
    empirical_risk: float
    total_kl: float
    bound: float
    kl: dict[str, float]
    history: list[dict[str, float]]


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
    certificates afterwards. What was looked at before on the same examples is added: ``tried_priors`` and
    ``tried_certificates``.

    A run on a GPU has the same folder, networks and examples of each draw; only the losses differ by rounding.

    Returns:
        The folder ``out/certify-<data>-<model>-<digest>``, and what is written to ``results.json`` there:
        ``configuration``, ``versions`` and ``rows``, each a :class:`CertificateRow`. Beside it, for each row, the
        certificate ``<family>-<objective>.json`` and the posterior, ``.pt``.

    Raises:
        ValueError: an unknown data set, model, family or device, and what the parts raise.
        CheckpointError: a file in the folder that cannot be read, or another process is using the folder.
    """
    certifying = CertifyRun(config, data_dir, device)
    folder = run_folder(out, f"certify-{config.data}-{config.model}", config)
    with open_run(config, folder) as run:
        write_json(folder / CONFIGURATION, dataclasses.asdict(config))
        prior = certifying.prior(folder)
        found = []
        for family, objective in rows(config):
            certificate, history = certifying.certificate(prior, family, objective, folder)
            certificate.save(folder / f"{family}-{objective}.json")
            found.append(_row(certificate, history))
        return folder, run.write({"rows": [dataclasses.asdict(row) for row in found]}, certifying.device)


def _row(certificate: Certificate, history: list[dict[str, float]]) -> CertificateRow:
    account = certificate.account()
    return CertificateRow(**certificate.notes, m=certificate.m, **account, kl=certificate.kl, history=history)  # type: ignore[arg-type]


class CertifyRun:
    """The data, the networks and the certificates of a configuration, on a device.

    Raises:
        ValueError: an unknown data set, model, family or device.
    """

    def __init__(self, config: RunConfig, data_dir: Path | None, device: str | torch.device) -> None:
        self.config, self.device = config, device_of(device)
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
        self.show(done, f"certificate {bound:.4g}")
