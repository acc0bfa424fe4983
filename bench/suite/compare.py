"""Compare two runs of the suite by the ratios of ours to the baseline, which compare better than times."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from stochprune.runs.files import CheckpointError, read_json
from stochprune.runs.results import record_of

from . import KIND
from .case import is_ours
from .row import Key, Row

Verdict = Literal["slower", "faster", "no difference shown"]


@dataclasses.dataclass(frozen=True)
class Results:
    """The part of a file of results that is compared."""

    kind: str
    commit: str
    machine: str
    device: str
    threads: int
    left: int
    versions: dict[str, str]
    configuration: dict[str, Any]
    rows: list[Row]


@dataclasses.dataclass(frozen=True)
class Change:
    """One row of ours in both runs.

    Attributes:
        before, after: time divided by that of the baseline, in the first run and in the second.
        change: ``after / before``; ``low`` and ``high`` are its interval.
    """

    case: str
    part: str
    contender: str
    before: float
    after: float
    change: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """The meaning of the interval: it lies above 1, below 1, or on both sides."""
        return "slower" if self.low > 1 else "faster" if self.high < 1 else "no difference shown"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The differences between two runs.

    Attributes:
        changes: one for each row of ours that has a ratio in both runs.
        notes: everything else: what differs between the runs, and each row that is missing, absent or wrong.
        broken: rows of ours that became wrong.
    """

    changes: list[Change]
    notes: list[str]
    broken: list[str]

    def failures(self, tolerance: float) -> list[str]:
        """Return the rows of ours that became wrong, or slower with an interval beyond ``1 + tolerance``."""
        slower = [
            f"{c.contender} in {c.case}, {c.part}, takes {c.change:.2f} times as long ({c.low:.2f} to {c.high:.2f})"
            for c in self.changes
            if c.low > 1 + tolerance
        ]
        return self.broken + slower


def read(path: Path) -> Results:
    """Read a run: its folder, or its ``results.json``.

    Raises:
        CheckpointError: the file does not exist, is truncated, was changed, or is not a run of the suite.
    """
    path = path / "results.json" if path.is_dir() else path
    content = read_json(path, "result of `stochprune bench run`")
    if content.get("kind") != KIND:
        raise CheckpointError(
            f"{path} is not a result of `stochprune bench run`: its kind is {content.get('kind')!r:.60}"
        )
    found = record_of(Results, content, path)
    keys = [row.key for row in found.rows]
    if twice := [key for key in {*keys} if keys.count(key) > 1] if len({*keys}) < len(keys) else []:
        raise CheckpointError(f"{path} has several rows of {', '.join(twice[0])!r:.300}")
    for row in found.rows:
        if not all(part.isprintable() for part in row.key):
            raise CheckpointError(f"{path} has a row whose name is not printable: {row.key!a:.300}")
        if row.interval is not None and not 0 < row.interval[0] <= row.interval[1] <= row.interval[2]:
            raise CheckpointError(f"{path}: {', '.join(row.key)} has the ratio and interval {row.interval}")
    return found


def compare(a: Results, b: Results) -> Comparison:
    """Compare the ratios of run ``b`` with those of run ``a``.

    The interval of a change is ``[b.low / a.high, b.high / a.low]``, from the 95 % intervals of both medians. It is
    conservative if the errors of the runs are independent: in logarithms it adds the half widths, where the interval of
    a difference needs the root of the sum of their squares. It knows the spread inside each process only; a
    second process on the same machine can differ by more.

    Raises:
        ValueError: the runs have no ratio of ours in common.
    """
    before, after = ({row.key: row for row in run.rows} for run in (a, b))
    notes = [*_facts(a, b), *_unmatched(before, after)]
    changes, broken = [], []
    for key in before.keys() & after.keys():
        one, other = before[key], after[key]
        if is_ours(key[2]) and other.wrong and not one.wrong:
            broken.append(f"{key[2]} in {key[0]}, {key[1]}, is wrong now: {other.wrong!r}")
        if is_ours(key[2]) and one.interval and other.interval:
            (low, x, high), (down, y, up) = one.interval, other.interval
            changes.append(Change(*key, x, y, y / x, down / high, up / low))
        elif is_ours(key[2]) and not (one.wrong or one.absent or other.wrong or other.absent):
            notes.append(f"no ratio, because the op has no baseline or it was not timed: {', '.join(key)}")
    if not changes and not broken:
        raise ValueError("compare: the two runs have no ratio of ours in common; run the same groups in both")
    order = {key: i for i, key in enumerate(before)}
    changes.sort(key=lambda change: order[change.case, change.part, change.contender])
    return Comparison(changes, notes, sorted(broken))


def _facts(a: Results, b: Results) -> Iterator[str]:
    """Yield what differs between the runs besides the commit, and what makes either of them weak."""
    for name in ("machine", "device", "threads"):
        if (one := getattr(a, name)) != (other := getattr(b, name)):
            yield f"different {name}: A {one!r}, B {other!r}; ratios of different machines say little"
    for name in sorted(a.versions.keys() | b.versions.keys()):
        if (one := a.versions.get(name)) != (other := b.versions.get(name)):
            yield f"different version of {name}: A {one!r}, B {other!r}"
    for label, run in (("A", a), ("B", b)):
        if run.left:
            yield f"{label} is not finished: {run.left} cases are left"
        if run.configuration.get("small"):
            yield f"{label} was run with --small, whose times mean nothing"


def _unmatched(before: dict[Key, Row], after: dict[Key, Row]) -> Iterator[str]:
    """Yield the rows of one run only, and those that are wrong or absent, once for all parts of a case."""
    said: dict[str, None] = {}
    for label, run, other in (("A", before, after), ("B", after, before)):
        for (case, part, contender), row in run.items():
            if row.wrong is not None:
                said[f"wrong in {label}: {contender} in {case}: {row.wrong!r}"] = None
            elif row.absent is not None:
                said[f"absent in {label}: {contender} in {case}: {row.absent!r}"] = None
            if (case, part, contender) not in other:
                said[f"only in {label}: {contender} in {case}, {part}"] = None
    yield from said
