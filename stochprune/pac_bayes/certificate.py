"""The certificate: everything that a bound depends on, and the bound recomputed from it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from stochprune import bounds
from stochprune.runs.digests import json_digest
from stochprune.runs.files import write_json
from stochprune.seeding import generator

FORMAT = "stochprune-certificate-2"
FINE = 1e-6
"""A cross-entropy is rounded up to a multiple of this."""


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Certifies that with probability at least 1 - delta - delta_draws the risk is at most ``bound``.

    The risk is the expected loss, on a fresh example of the same distribution, of a network sampled from the posterior
    for that example. ``bound`` = kl^-1(``empirical_risk`` | (KL + ln(2 sqrt(m) priors / delta)) / m), and
    ``empirical_risk`` is an upper bound on the mean loss over the m examples, computed from the Monte Carlo ``losses``.

    Attributes:
        m: number of examples that certify.
        delta, delta_draws: probabilities of failure, over the examples and over the draws.
        priors: number of priors among which this one was chosen after looking at the examples; divides ``delta``.
        posteriors: number of certified posteriors among which this one was chosen; divides ``delta_draws``.
        kl: KL(Q || P) in nats by weight name.
        loss, monte_carlo: names, as in :class:`stochprune.pac_bayes.CertifyConfig`.
        planned: number of draws, fixed beforehand.
        unit, losses: the loss of draw t is ``losses[t] * unit``, rounded up.
        draw_examples: number of examples in the batch of a draw; 0 if each draw used all of them.
        seed, mask_seed: seeds of the examples of each draw and of its masks; draw t uses the contract's draw t. The
            second seed is computed from the first.
        data, dataset: the name of the data set, and the digest of all its examples before the split.
        prior, model: digests of the prior and of the posterior.
        certified, prior_saw, prior_sizes: digests of the index sets of the certifying examples and of the parts that
            the prior or a choice has seen, and the sizes of these parts. They have no example in common.
        configuration: the run's configuration (``RunConfig``), which determines most of the above; None outside a run.
        versions: versions and settings of the run: software, device, threads, and the backend of the masks. Nothing is
            computed from them, and files of earlier versions lack some.
        notes: ``family`` and ``objective`` of a run's posterior, and its test error. Outside a run they are free text.
    """

    m: int
    delta: float
    delta_draws: float
    priors: int
    posteriors: int
    kl: dict[str, float]
    loss: str
    monte_carlo: str
    planned: int
    unit: float
    losses: list[int] = dataclasses.field(repr=False)
    draw_examples: int
    seed: int
    mask_seed: int
    data: str
    dataset: str
    prior: str
    model: str
    certified: str
    prior_saw: list[str]
    prior_sizes: list[int]
    configuration: dict[str, Any] | None = None
    versions: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False)
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def draws(self) -> int:
        """Number of Monte Carlo draws."""
        return len(self.losses)

    @property
    def total_kl(self) -> float:
        """KL(Q || P) in nats."""
        return math.fsum(self.kl.values())

    @property
    def mean_loss(self) -> float:
        """The mean loss over the draws, an unbiased estimate of the empirical risk."""
        return min(1.0, math.fsum(self.losses) * self.unit / self.draws)

    @property
    def empirical_risk(self) -> float:
        """The bound on the posterior's mean loss over the m examples."""
        if self.monte_carlo == "kl":
            return bounds.monte_carlo(self.mean_loss, self.draws, self.delta_draws, choices=self.posteriors)
        losses = np.minimum(1.0, np.array(self.losses) * self.unit)
        return bounds.betting(losses, self.delta_draws, choices=self.posteriors, planned=self.planned)

    @property
    def bound(self) -> float:
        """The certified risk, at most 1."""
        return min(1.0, bounds.maurer(self.empirical_risk, self.total_kl, self.m, self.delta, choices=self.priors))

    def account(self) -> dict[str, float]:
        """The numbers that are recomputed from the other fields."""
        names = ("draws", "mean_loss", "empirical_risk", "total_kl", "bound")
        return {name: getattr(self, name) for name in names}

    def digests(self) -> dict[str, str]:
        """Return the digests of the configuration and of the draws' losses."""
        return {"configuration": json_digest(self.configuration), "draws": json_digest(self.losses)}

    def save(self, path: Path) -> None:
        """Write all fields and the computed numbers as JSON, with a digest of the whole."""
        write_json(path, {"format": FORMAT, **self.account(), "digests": self.digests(), **dataclasses.asdict(self)})


def mask_seed(seed: int) -> int:
    """Return the seed of the masks of a certificate, which no training uses."""
    return int(generator(seed, "certify", "masks").integers(1 << 63))
