"""Replace each ``<!-- ledger: NAME -->`` of a page by a table of bench/results, so that no number is typed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.pages import Page

from bench import suite_tables, tables
from bench.suite import KIND

RESULTS = Path(__file__).parents[2] / "bench" / "results"
MARK = re.compile(r"^<!-- ledger: ([\w-]+) -->$", re.MULTILINE)
SAVED = "saved for backward beyond dense, bytes a weight"


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Return the page with its tables."""
    return MARK.sub(lambda mark: TABLES[mark[1]](), markdown)


def newest(kind: str) -> dict[str, Any] | None:
    """Return the newest file of a kind, such as ``cpu``; its name has the date. None if there is none."""
    paths = sorted(RESULTS.glob(f"{kind}-*.json"), key=lambda path: re.findall(r"\d{4}-\d\d-\d\d|$", path.name)[0])
    return json.loads(paths[-1].read_text()) if paths else None


def is_suite(found: dict[str, Any]) -> bool:
    """Return True for a run of the suite; files from before 2026-11-22 are of another benchmark."""
    return found.get("kind") == KIND


def cpu_about() -> str:
    """Return the machine, the versions and the commit of the benchmark."""
    found = newest("cpu")
    return suite_tables.about(found) if is_suite(found) else found["about"]


def cpu_steps() -> str:
    """Return the times of a training step of a layer at the largest width."""
    found = newest("cpu")
    if is_suite(found):
        linear = [row for row in found["rows"] if row["op"] == "linear" and row["part"] == "step"]
        widest = max(row["shape"]["rows"] for row in linear)
        return suite_tables.times([row for row in linear if row["shape"]["rows"] == widest])
    return tables.steps([row for row in found["rows"] if row.get("part") == "step" and row["width"] == 4096])


def cpu_memory() -> str:
    """Return the bytes that each contender keeps."""
    found = newest("cpu")
    if is_suite(found):
        return suite_tables.memory([row for row in found["rows"] if row["op"] == "linear"])
    return tables.memory(found["rows"])


def cpu_sampling() -> str:
    """Return the times of sampling a mask beside the time of a copy."""
    found = newest("cpu")
    if is_suite(found):
        return suite_tables.times([row for row in found["rows"] if row["op"] == "mask"])
    return tables.sampling(found["rows"])


def networks() -> str:
    """Return the times of a step of whole networks, divided by those of the dense network."""
    found = newest("models")
    names = [name for name in found["rows"][0]["tax"] if name != "dense"]
    lines = [
        [row["network"], str(row["batch"]), *(f"{row['tax'][name]:.2f}" for name in names)]
        + [f"{row[SAVED][name]:.0f}" for name in ("joint", "eager")]
        for row in found["rows"]
    ]
    head = ["network", "batch", *names, "bytes a weight: joint", "eager"]
    versions = found["versions"]
    about = f"torch {versions['torch']}, {found['threads']} thread, {found['rounds']} rounds, {found['commit'][:10]}."
    return f"{about}\n\n{tables.table(head, lines)}"


def gpu() -> str:
    """Return the figures of the newest GPU check, or that there is none."""
    found = newest("gpu")
    if found is None:
        return "The ledger has no result of a GPU yet, so this page claims nothing about GPUs."
    lines = []
    for f in found["figures"]:
        value = "not measured" if f["found"] is None else f"{f['found']:.2f}"
        at = f"{f['m']}, {f['n']} x {f['k']}"
        lines.append([f["figure"], at, f["masters"], str(f["goal"]), value, f["timed"] or ""])
    versions = found["versions"]
    about = f"{versions.get('gpu')}, torch {versions.get('torch')}, Triton {versions.get('triton')}."
    head = ["figure", "batch, weight", "weights", "goal", "found", "timed"]
    return f"{about}\n\n{tables.table(head, lines)}"


TABLES = {
    "cpu-about": cpu_about,
    "cpu-steps": cpu_steps,
    "cpu-memory": cpu_memory,
    "cpu-sampling": cpu_sampling,
    "networks": networks,
    "gpu": gpu,
}
