"""The ledger's row is made from the journal alone, whatever of it is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import gpu_check
from bench.gpu import summary
from bench.gpu.journal import Journal

VERSIONS = {"gpu": "NVIDIA H200", "torch": "2.11.0", "triton": "3.6.0", "commit": "a" * 40, "source": "b", "date": "d"}


def timed(m: int, contender: str, forward: Any, step: Any) -> dict[str, Any]:
    """A row of the step times: inside a graph the given ones, eagerly 1000."""
    size = {"m": m, "n": 4096, "k": 4096, "masters": "bf16", "masks": "one", "contender": contender}
    found = {
        **size,
        "forward": {"eager_us": 1000.0, "graph_us": forward},
        "step": {"eager_us": 1000.0, "graph_us": step},
    }
    return {"step": "times", "case": f"{m} {contender}", "ok": True, "found": found}


ROWS = [
    {"step": "install", "case": "versions", "ok": True, "found": VERSIONS},
    {"step": "smoke", "case": "thresholds 1x2x3", "ok": False, "error": "Traceback\n  of it\nFailed: a race"},
    {"step": "smoke", "case": "cuda 1x2x3", "ok": None, "skipped": "not built"},
    {"step": "smoke", "case": "(step)", "ok": False, "seconds": 9.5, "complete": True, "left": 0},
    {"step": "times", "case": "ceilings", "ok": True, "found": {"copy_tb_per_s": 4.0, "matmul_tflop_per_s": 700.0}},
    timed(16, "in_register", 20.0, 60.0),
    timed(16, "prepass", 40.0, 50.0),
    timed(16, "compile", 60.0, 100.0),
    timed(4096, "dense", 500.0, 1500.0),
    timed(4096, "in_register", "RuntimeError: cannot be captured", "RuntimeError: cannot be captured"),
]


def write(folder: Path, rows: list[dict[str, Any]], run: str = "one") -> None:
    for row in rows:
        Journal(run, [folder]).write(row)


def test_the_figures() -> None:
    row = summary.ledger(ROWS)
    found = {(f["figure"], f["m"]): (f["found"], f["reached"]) for f in row["figures"]}
    floor = 4 * 4096**2 / 4.0 / 1e6  # microseconds
    assert found["forward, share of the byte floor", 16] == (pytest.approx(floor / 20), True)
    assert found["forward, compile over ours", 16] == (3.0, True)
    assert found["step, ours over dense", 4096] == (pytest.approx(1.0), True)  # both eagerly
    assert {f["figure"]: f["timed"] for f in row["figures"] if f["m"] == 4096}["step, ours over dense"] == "eagerly"
    assert found["step, compile over ours", 4096] == (None, None)
    assert summary.figure("", (1, 2, 3, "bf16"), 1.08, (1.2, "eagerly"), at_least=False)["reached"] is False


def test_the_steps_and_the_failures() -> None:
    row = summary.ledger(ROWS)
    assert row["versions"] == VERSIONS and row["failures"] == {"smoke thresholds 1x2x3": "Failed: a race"}
    assert row["skipped"] == {"smoke cuda 1x2x3": "not built"}
    assert row["steps"]["smoke"] == {
        "passed": 0, "failed": 1, "skipped": 1, "complete": True, "seconds": 9.5, "left": 0,
    }  # fmt: skip
    assert not row["steps"]["times"]["complete"]  # it has no row of its own: it was cut off
    text = summary.text(row)
    assert "CUT OFF" in text and "FAILED smoke thresholds 1x2x3: Failed: a race" in text and "not measured" in text


def test_a_row_for_every_part_of_a_run(tmp_path: Path) -> None:
    """Whatever was lost, the rest makes a row."""
    for end in range(1, len(ROWS) + 1):
        assert summary.text(summary.ledger(ROWS[:end])) and summary.text(summary.ledger(ROWS[-end:]))


def test_a_case_that_was_cut_off_keeps_its_first_part() -> None:
    part = timed(64, "dense", 20.0, 60.0) | {"ok": None, "skipped": "not finished"}
    row = summary.ledger([part, {"step": "times", "case": part["case"], "ok": False, "error": "nothing after 60 s"}])
    assert row["times"] == [part["found"]] and row["steps"]["times"]["failed"] == 1
    assert summary.ledger([part])["steps"]["times"]["skipped"] == 1


def test_the_summary_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, ROWS)
    write(
        tmp_path, [{"step": "smoke", "case": "thresholds 1x2x3", "ok": True}], "two"
    )  # run again: the last time counts
    assert gpu_check.main(["--summary", str(tmp_path)]) == 0
    path = tmp_path / f"gpu-NVIDIA-H200-d-{'a' * 10}.json"
    row = json.loads(path.read_text())
    assert row["steps"]["smoke"]["passed"] == 1 and row["failures"] == {}
    assert str(path) in capsys.readouterr().out


def test_runs_of_two_sources_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, source in (("one", "b"), ("two", "c")):
        write(
            tmp_path,
            [{"step": "install", "case": "versions", "ok": True, "found": {**VERSIONS, "source": source}}],
            run,
        )
    assert gpu_check.main(["--summary", str(tmp_path)]) == 0
    assert "source: b, c" in capsys.readouterr().err


def test_compile_that_cannot_be_captured_is_compared_eagerly() -> None:
    """Its eager time over our graph's would be mostly the host's time, and the figure reached without being so."""
    rows = [timed(16, "prepass", 20.0, 50.0), timed(16, "compile", "RuntimeError: no", "RuntimeError: no")]
    found = {f["figure"]: f["found"] for f in summary.ledger(rows)["figures"]}
    assert found["forward, compile over ours"] == 1.0


def test_rows_of_one_day_and_odd_names_stay_separate() -> None:
    row = {"versions": {**VERSIONS, "gpu": "GPU w/ Max-Q (80 GB)"}}
    assert summary.file_name(row, "20261121-1000") == f"gpu-GPU-w-Max-Q-80-GB--20261121-1000-{'a' * 10}.json"


def test_the_name_without_git() -> None:
    row = {"versions": {**VERSIONS, "commit": "unknown"}}
    assert summary.file_name(row) == "gpu-NVIDIA-H200-d-source-b.json"
