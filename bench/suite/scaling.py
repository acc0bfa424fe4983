"""How the cost grows with weights, batch and draws: cases over three decades, and slopes in logarithms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

from .case import Case, is_ours
from .row import Row

GROUP, OP = "scaling", "linear_scaled"
HALF_DECADES = range(7)
"""Seven sizes over three decades."""
GOAL = 0.95, 1.05
"""The slope of ours against weights and draws, whose cost is proportional. There is no goal for the batch."""
WITH_A_GOAL = "weights", "draws"
FEWEST = 4
"""Points of a line whose slope has an interval."""


def _case(side: int, tokens: int, draws: int) -> Case:
    shape = {"rows": side, "cols": side, "tokens": tokens, "draws": draws}
    return Case(GROUP, OP, shape, parts=("step",))


CASES = [
    *(_case(round(math.sqrt(10 ** (4 + i / 2))), 128, 1) for i in HALF_DECADES),  # 1e4 to 1e7 weights
    *(_case(1024, round(10 ** (i / 2)), 1) for i in HALF_DECADES),  # batch 1 to 1000
    *(_case(256, 8, round(10 ** (i / 2))) for i in HALF_DECADES),  # 1 to 1000 draws
]


@dataclasses.dataclass(frozen=True)
class Slope:
    """The slope of log(time) against log(size) for one contender.

    Attributes:
        against: ``weights``, ``tokens`` or ``draws``; the other sizes are those of ``fixed``.
        points: number of sizes, from ``smallest`` to ``largest``.
        low, high: the 95 % interval, see :func:`slopes`.
        goal: ``met`` if the interval lies inside :data:`GOAL`, ``missed`` if outside, else ``open``; None without one.
    """

    against: str
    fixed: dict[str, int]
    contender: str
    part: str
    dtype: str
    mode: str
    points: int
    smallest: int
    largest: int
    slope: float
    low: float
    high: float
    goal: Literal["met", "missed", "open"] | None


def slopes(rows: Sequence[Row]) -> list[Slope]:
    """Return the slope of each contender against each size that varies while the others stay.

    The line is fitted to the medians by least squares. Its interval is Student's over the points, n - 2 degrees of
    freedom: it counts the distance of the points from the line, so both noise and a bend of the curve make it wide. (An
    interval from the rounds of each case would know the noise alone.)
    """
    lines: dict[tuple[Any, ...], dict[int, float]] = {}
    for row in rows:
        if row.group != GROUP or row.p50 is None:
            continue
        sizes = {"weights": row.shape["rows"] * row.shape["cols"], **{n: row.shape[n] for n in ("tokens", "draws")}}
        for against, size in sizes.items():
            fixed = tuple((name, other) for name, other in sizes.items() if name != against)
            key = (against, fixed, row.contender, row.part, row.dtype, row.mode)
            lines.setdefault(key, {})[size] = row.p50
    found = []
    for (against, fixed, contender, part, dtype, mode), points in lines.items():
        if len(points) >= FEWEST:
            slope, half = fit([*points], [*points.values()])
            ends = slope - half, slope + half
            goal = _goal(*ends) if is_ours(contender) and against in WITH_A_GOAL else None
            span = len(points), min(points), max(points)
            found.append(Slope(against, dict(fixed), contender, part, dtype, mode, *span, slope, *ends, goal))
    return found


def fit(sizes: Sequence[float], times: Sequence[float]) -> tuple[float, float]:
    """Return the slope of log(time) against log(size), and the half width of its 95 % interval over the points."""
    from scipy.stats import linregress, t  # here: scipy takes a second to import

    line = linregress([math.log(size) for size in sizes], [math.log(time) for time in times])
    return float(line.slope), float(t.ppf(0.975, len(sizes) - 2) * line.stderr)


def _goal(low: float, high: float) -> Literal["met", "missed", "open"]:
    if high < GOAL[0] or low > GOAL[1]:
        return "missed"
    return "met" if GOAL[0] <= low and high <= GOAL[1] else "open"
