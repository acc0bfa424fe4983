"""Make a row of the ledger from the journal alone, complete or not, and the table at the end of the check.

This needs neither torch nor a GPU. It can be repeated on any machine: ``python -m bench.gpu_check --summary FOLDER``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.gpu.journal import Row, read

OURS = ("in_register", "thresholds", "prepass", "cuda")
SAME = ("gpu", "torch", "triton", "source")  # the versions that all rows of one summary should share
UNKNOWN = "unknown"


def gather(path: Path) -> list[Row]:
    """Return the rows of a file, or of all runs in a folder in their order.

    Raises:
        ValueError: there are no rows.
    """
    paths = sorted(path.glob("gpu-check-*.jsonl")) if path.is_dir() else [path]
    rows = [row for one in paths for row in read(one)]
    if not rows:
        raise ValueError(f"--summary: no row of a check in {path}")
    return rows


def mixed(path: Path) -> dict[str, list[str]]:
    """Return the values of versions that differ between the runs of a folder and should not, by name."""
    paths = sorted(path.glob("gpu-check-*.jsonl")) if path.is_dir() else [path]
    found = [row["found"] for one in paths for row in read(one) if row.get("case") == "versions" and row.get("ok")]
    values = {name: sorted({str(versions.get(name)) for versions in found}) for name in SAME}
    return {name: seen for name, seen in values.items() if len(seen) > 1}


def ledger(rows: Sequence[Row]) -> Row:
    """Return the ledger's row: versions, the result of each step, the figures and all measurements."""
    rows = [row for row in rows if row.keys() >= {"step", "case", "ok"}]
    last = {(row["step"], row["case"]): row for row in rows}  # the last row of a case that ran again
    by: dict[str, list[Row]] = {}
    for (step, _), row in last.items():
        by.setdefault(step, []).append(row)
    found: dict[str, Row] = {}
    for row in rows:  # also the first parts of a case that was cut off
        if "found" in row:
            found.setdefault(row["step"], {})[row["case"]] = row["found"]
    times = dict(found.get("times", {}))
    ceilings = times.pop("ceilings", {})
    return {
        "versions": {**found.get("versions", {}), **found.get("install", {})}.get("versions", {}),
        "steps": {name: state(rows) for name, rows in by.items()},
        "failures": {f"{r['step']} {r['case']}": last_line(r.get("error")) for r in last.values() if failed(r)},
        "skipped": {
            f"{r['step']} {r['case']}": r.get("skipped")
            for r in last.values()
            if r["ok"] is None and r["step"] != "tests"
        },
        "figures": list(figures(list(times.values()), ceilings)),
        "ceilings": ceilings,
        "times": list(times.values()),
        **{name: found.get(name, {}) for name in ("smoke", "counters", "calibrate", "sanitize", "draws")},
    }


def failed(row: Row) -> bool:
    """Return True if a case failed; the row of a whole step is not a case."""
    return row.get("ok") is False and row["case"] != "(step)"


def last_line(error: Any) -> str:
    """Return the last line of a traceback."""
    return (str(error).strip().splitlines() or [""])[-1][:300]


def state(rows: Sequence[Row]) -> Row:
    """Return the result of a step. A step without its own row was cut off."""
    cases = [row for row in rows if row["case"] != "(step)"]
    own = next((row for row in rows if row["case"] == "(step)"), {})
    return {
        "passed": sum(row["ok"] is True for row in cases),
        "failed": sum(row["ok"] is False for row in cases),
        "skipped": sum(row["ok"] is None for row in cases),
        "complete": own.get("complete", False),
        "seconds": own.get("seconds"),
        "left": own.get("left", "an unknown number"),
    }


WAYS = {"graph_us": "in a graph", "eager_us": "eagerly"}
Times = dict[str, float]  # by contender
Term = Callable[[Times], float | None]


def timed(contenders: dict[str, Row], part: str) -> dict[str, Times]:
    """Return a part's times in a graph and eagerly; a contender that cannot be captured has no time in a graph."""
    found = {way: {name: row.get(part, {}).get(kind) for name, row in contenders.items()} for kind, way in WAYS.items()}
    return {
        way: {name: float(value) for name, value in times.items() if isinstance(value, float | int)}
        for way, times in found.items()
    }


def compared(ways: dict[str, Times], over: Term, under: Term) -> tuple[float | None, str | None]:
    """Return the ratio of two times and how they were taken: both in a graph if possible, otherwise both eagerly."""
    for way, times in ways.items():
        a, b = over(times), under(times)
        if a is not None and b:
            return a / b, way
    return None, None


def figures(times: Sequence[Row], ceilings: Row) -> Iterator[Row]:
    """Yield the figures with goals, for every size at which their times were measured."""
    for size, contenders in sizes(times).items():
        m, n, k, masters, masks = size
        if masks != "one":
            continue
        forward, step = timed(contenders, "forward"), timed(contenders, "step")
        copy = ceilings.get("copy_tb_per_s")
        floor = (8 if masters == "fp32" else 4) * n * k / copy / 1e6 if copy else None  # read weights and logits once
        if m <= 64:
            share = compared(forward, lambda _, floor=floor: floor, best)
            yield figure("forward, share of the byte floor", size, 0.80, share, True)
            yield figure("forward, compile over ours", size, 2.5, compared(forward, contender("compile"), best), True)
        if m == 128:
            goal = 1.4 if masters == "fp32" else 1.15
            yield figure("step, compile over ours", size, goal, compared(step, contender("compile"), best), True)
        if m >= 4096:
            goal = 1.13 if m < 8192 else 1.08
            yield figure("step, ours over dense", size, goal, compared(step, best, contender("dense")), False)
            yield figure("step, compile over ours", size, 1.02, compared(step, contender("compile"), best), True)


def sizes(times: Iterable[Row]) -> dict[tuple[Any, ...], dict[str, Row]]:
    """Return the contenders' rows by size."""
    found: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in times:
        found.setdefault(tuple(row[name] for name in ("m", "n", "k", "masters", "masks")), {})[row["contender"]] = row
    return found


def best(times: Times) -> float | None:
    """Return the smallest time of our ways."""
    return min((t for name, t in times.items() if name in OURS), default=None)


def contender(name: str) -> Term:
    """Return a function that looks up the time of one contender."""
    return lambda times: times.get(name)


def figure(
    name: str, size: tuple[Any, ...], goal: float, compared: tuple[float | None, str | None], at_least: bool
) -> Row:
    """Return one line of the ledger's table of figures."""
    found, way = compared
    reached = None if found is None else (found >= goal if at_least else found <= goal)
    at = {"m": size[0], "n": size[1], "k": size[2], "masters": size[3]}
    return {"figure": name, **at, "goal": goal, "found": found, "timed": way, "reached": reached}


def file_name(row: Row, run: str = "") -> str:
    """Return the file name of the ledger's row: GPU, run or date, and commit (the digest of the source without git)."""
    v = row["versions"]
    commit = v.get("commit", UNKNOWN)
    state = commit[:10] if commit != UNKNOWN else f"source-{v.get('source', UNKNOWN)}"
    gpu = re.sub(r"[^\w.-]+", "-", str(v.get("gpu", UNKNOWN)))
    return f"gpu-{gpu}-{run or v.get('date', UNKNOWN)}-{state}.json"


def text(row: Row) -> str:
    """Return the text at the end of the check, short enough for the last page of a log."""
    v = row["versions"]
    lines = ["", f"{v.get('gpu', UNKNOWN)}, torch {v.get('torch')}, Triton {v.get('triton')}, commit {v.get('commit')}"]
    for name, step in row["steps"].items():
        end = "" if step["complete"] else f", CUT OFF, {step['left']} left"
        lines.append(f"{name:>9}  {step['passed']} passed, {step['failed']} failed, {step['skipped']} skipped{end}")
    head = f"{'M':>6} {'weights':>12} {'masters':>7} {'masks':>5}  {'contender':<12} {'forward':>9} {'step':>9}"
    lines += ["", head + "  eager: forward      step      host us  launches  saved MB  peak MB"]
    for size, contenders in sizes(row["times"]).items():
        m, n, k, masters, masks = size
        for name, found in contenders.items():
            fields = [cell(found, part, kind) for kind in ("graph_us", "eager_us") for part in ("forward", "step")]
            rest = [cell(found, "step", "host_us"), cell(found, "step", "launches", 0)]
            rest += [cell(found, "step", kind, 1, 1e-6) for kind in ("saved_bytes", "peak_bytes")]
            cells = " ".join(f"{value:>9}" for value in (*fields, *rest))
            lines.append(f"{m:>6} {f'{n}x{k}':>12} {masters:>7} {masks:>5}  {name:<12} {cells}")
    lines.append("")
    for f in row["figures"]:
        verdict = {True: "reached", False: "missed", None: "not measured"}[f["reached"]]
        value = "-" if f["found"] is None else f"{f['found']:.2f}"
        end = f"goal {f['goal']:<5} {verdict} {f['timed'] or ''}".rstrip()
        lines.append(f"M {f['m']:>5} {f['n']}x{f['k']} {f['masters']}  {f['figure']:<34} {value:>6}  {end}")
    failures = [f"FAILED {name}: {why}" for name, why in list(row["failures"].items())[:40]]
    return "\n".join([*lines, *failures])


def cell(row: Row, part: str, kind: str, digits: int = 1, scale: float = 1.0) -> str:
    """Return a number of the table as text, or a dash."""
    value = row.get(part, {}).get(kind)
    return f"{scale * value:.{digits}f}" if isinstance(value, float | int) else "-"


def dumps(row: Row) -> str:
    """Return the content of the ledger's file."""
    return json.dumps(row, indent=1) + "\n"
