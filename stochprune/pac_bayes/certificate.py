"""The certificate: everything that a bound depends on, and the bound recomputed from it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from stochprune import bounds
from stochprune.runs.files import write_json
from stochprune.runs.results import versions

FORMAT = "stochprune-certificate-1"


@dataclasses.dataclass(frozen=True)
class Certificate:
    """With probability at least 1 - delta - delta_draws, the risk of the stochastic network is at most ``bound``.

    The risk is the expected loss, on a fresh example of the same distribution, of a network drawn from the posterior
    for that example. ``bound`` = kl^-1(``empirical_risk`` | (KL + ln(2 sqrt(m) priors / delta)) / m), and
    ``empirical_risk`` bounds the mean loss over the m examples by the Monte Carlo ``losses``.

    Attributes:
        m: number of examples that certify.
        delta, delta_draws: probabilities of failure, over the examples and over the draws.
        priors: number of priors among which this one was chosen after looking at the examples; divides ``delta``.
        posteriors: number of certified posteriors among which this one was chosen; divides ``delta_draws``.
        kl: KL(Q || P) in nats by weight name.
        loss, monte_carlo: names, as in :class:`stochprune.pac_bayes.CertifyConfig`.
        planned: number of draws, fixed beforehand.
        unit, losses: the loss of draw t is ``losses[t] * unit``, rounded up.
        draw_examples: examples in the batch of a draw; 0 where each draw saw all of them.
        seed, mask_seed: of the examples of each draw, and of its masks: draw t uses the contract's draw t.
        data, model: what the examples are, and the digest of the posterior.
        certified, prior_saw: digests of the index sets; of the examples that certify, and of the parts that the prior
            or a choice has seen. They have no example in common.
        notes: free, for instance the test error. Nothing depends on it.
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
    model: str
    certified: str
    prior_saw: list[str]
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
        """The certified risk; 1 at most."""
        return min(1.0, bounds.maurer(self.empirical_risk, self.total_kl, self.m, self.delta, choices=self.priors))

    def account(self) -> dict[str, float]:
        """What is recomputed from the rest."""
        names = ("draws", "mean_loss", "empirical_risk", "total_kl", "bound")
        return {name: getattr(self, name) for name in names}

    def save(self, path: Path) -> None:
        """Write everything, with what was computed, as JSON."""
        content = {"format": FORMAT, **self.account(), "versions": versions(), **dataclasses.asdict(self)}
        write_json(path, content)


_KINDS: dict[str, tuple[type, ...]] = {
    "m": (int,),
    "delta": (int, float),
    "delta_draws": (int, float),
    "priors": (int,),
    "posteriors": (int,),
    "kl": (dict,),
    "planned": (int,),
    "unit": (int, float),
    "losses": (list,),
    "draw_examples": (int,),
    "seed": (int,),
    "mask_seed": (int,),
    "data": (str,),
    "model": (str,),
    "certified": (str,),
    "prior_saw": (list,),
    "notes": (dict,),
}


def load_certificate(path: Path) -> Certificate:
    """Read a certificate and verify it: the bound is recomputed and compared with what the file states.

    Raises:
        ValueError: the file is no certificate, is damaged, or states numbers that do not follow from its account.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is truncated or not a certificate: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not a certificate of this program (format {FORMAT})")
    fields = [field.name for field in dataclasses.fields(Certificate)]
    missing = [name for name in fields if name not in content]
    if missing:
        raise ValueError(f"{path} lacks {missing[0]!r}")
    certificate = Certificate(**{name: content[name] for name in fields})
    _check(certificate, path)
    for name, value in certificate.account().items():
        stated = content.get(name)
        if not isinstance(stated, (int, float)) or not math.isclose(stated, value, rel_tol=1e-9, abs_tol=1e-12):
            raise ValueError(f"{path} states {name} = {stated}, but its account gives {value}")
    return certificate


def _check(certificate: Certificate, path: Path) -> None:
    for name, kinds in _KINDS.items():
        value = getattr(certificate, name)
        if type(value) not in kinds:  # and not bool, which is an int
            raise ValueError(f"{path}: {name} must be {kinds[-1].__name__}, got {value!r}")
    if not all(type(value) is str for value in certificate.prior_saw):
        raise ValueError(f"{path}: prior_saw must hold digests")
    losses = certificate.losses
    whole = all(type(value) is int for value in losses)
    if not whole or not losses or min(losses) < 0 or max(losses) * certificate.unit > 1 + 1e-9:
        raise ValueError(f"{path}: the losses of the draws must be integers that lie in [0, 1] times the unit")
    if not all(type(value) in (int, float) and 0 <= value < math.inf for value in certificate.kl.values()):
        raise ValueError(f"{path}: a divergence is negative, infinite or no number")
    for name, known in (("monte_carlo", ("betting", "kl")), ("loss", ("zero_one", "cross_entropy"))):
        if getattr(certificate, name) not in known:
            raise ValueError(f"{path}: unknown {name} {getattr(certificate, name)!r}")
    per_draw = certificate.draw_examples or certificate.m
    if certificate.loss == "zero_one" and not (per_draw > 0 and math.isclose(certificate.unit * per_draw, 1)):
        raise ValueError(f"{path}: the unit of the losses is {certificate.unit}, not one of {per_draw} examples")
    if len(losses) != certificate.planned:
        raise ValueError(f"{path}: {len(losses)} draws, but {certificate.planned} were planned")
    if certificate.certified in certificate.prior_saw:
        raise ValueError(f"{path}: the prior has seen the examples that certify")
