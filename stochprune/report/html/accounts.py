"""The account of a certificate: what each part of its bound costs, and differences to the control."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stochprune.bounds import maurer
from stochprune.report.html import charts

CONTROL = "prior"
FIRST, PRIOR = "mean loss", ("+ prior's examples", "+ choice of prior")
NORMAL = 1.959964
"""The 97.5 % quantile of the normal distribution."""


@dataclasses.dataclass(frozen=True)
class Account:
    """A certificate's numbers, from its own file or from the row of a run.

    Attributes:
        prior_examples: examples that trained the prior; None if the file does not say.
        losses: of the draws; None if the file does not hold them.
    """

    family: str
    objective: str
    m: int
    delta: float
    priors: int
    mean_loss: float
    empirical_risk: float
    total_kl: float
    bound: float
    test_error: float | None
    kl: Mapping[str, float]
    prior_examples: int | None
    losses: NDArray[np.float64] | None

    @property
    def name(self) -> str:
        return f"{self.family}, {self.objective}"

    def steps(self) -> list[tuple[str, float]]:
        """Return the parts of the bound in the order of the proof: a name and the risk that it adds.

        The first is the mean loss of the draws; the sum is the bound.
        """

        def level(m: int, priors: int, kl: float) -> float:
            return min(1.0, float(maurer(self.empirical_risk, kl, m, self.delta, choices=priors)))

        seen = self.prior_examples or 0
        levels = {
            FIRST: self.mean_loss,
            "+ draws": self.empirical_risk,
            "+ delta": level(self.m + seen, 1, 0.0),
            PRIOR[0]: level(self.m, 1, 0.0),
            PRIOR[1]: level(self.m, self.priors, 0.0),
            "+ KL": level(self.m, self.priors, self.total_kl),
        }
        heights = list(levels.values())
        costs = [heights[0], *(after - before for before, after in itertools.pairwise(heights))]
        return [step for step in zip(levels, costs, strict=True) if not (step[0] in PRIOR and step[1] == 0)]

    def follows(self) -> bool:
        """Return True if the stated bound is the one that its other numbers give."""
        return math.isclose(math.fsum(cost for _, cost in self.steps()), self.bound, rel_tol=1e-6, abs_tol=1e-9)


def from_certificate(content: Mapping[str, Any]) -> Account:
    """Return the account of a certificate's file, of any of its formats."""
    notes, sizes = content.get("notes") or {}, content.get("prior_sizes")
    losses = np.asarray(content["losses"], dtype=np.float64)
    return Account(
        family=str(notes.get("family", "certificate")),
        objective=str(notes.get("objective", content.get("data", ""))),
        m=int(content["m"]),
        delta=float(content["delta"]),
        priors=int(content["priors"]),
        test_error=notes.get("test_error"),
        prior_examples=None if sizes is None else sum(map(int, sizes)),
        losses=np.minimum(1.0, losses.ravel() * float(content["unit"])) if losses.size else None,
        **_numbers(content),
    )


def from_row(row: Mapping[str, Any], configuration: Mapping[str, Any]) -> Account:
    """Return the account of a row of ``results.json``, whose certificate is not there."""
    return Account(
        family=str(row["family"]),
        objective=str(row["objective"]),
        m=int(row["m"]),
        delta=float(configuration["certify"]["delta"]),
        priors=len(configuration["posteriors"]) + int(configuration.get("tried_priors", 0)),
        test_error=row.get("test_error"),
        prior_examples=None,
        losses=None,
        **_numbers(row),
    )


def _numbers(content: Mapping[str, Any]) -> dict[str, Any]:
    names = ("mean_loss", "empirical_risk", "total_kl", "bound")
    kl = {str(name): float(value) for name, value in content["kl"].items()}
    return {**{name: float(content[name]) for name in names}, "kl": kl}


def differences(accounts: Sequence[Account]) -> list[dict[str, Any]]:
    """Return the difference of each learnt posterior to the control of its family, in percentage points.

    Draw t of both uses the same examples, so the losses are compared draw by draw. ``low`` and ``high`` are the 95 %
    interval of the difference of the mean losses, moved to each difference; None without the draws.
    """
    controls = {account.family: account for account in accounts if account.objective == CONTROL}
    records = []
    for account in accounts:
        control = controls.get(account.family)
        if control is None or account is control:
            continue
        half = _half_width(account, control)
        for series, name in (("certificate", "bound"), ("mean loss of the draws", "mean_loss")):
            value = 100 * (getattr(account, name) - getattr(control, name))
            records.append(charts.interval(account.name, series, value, half))
        if account.test_error is not None and control.test_error is not None:
            value = 100 * (float(account.test_error) - float(control.test_error))
            records.append(charts.interval(account.name, "test error, five networks", value, None))
    return records


def _half_width(account: Account, control: Account) -> float | None:
    if account.losses is None or control.losses is None or len(account.losses) != len(control.losses):
        return None
    if len(account.losses) < 2:
        return None
    paired = account.losses - control.losses
    return 100 * NORMAL * float(paired.std(ddof=1)) / math.sqrt(len(paired))
