"""``stochprune bench run``: the file of results, continuing, what a wrong contender does."""

from __future__ import annotations

import json
import os
import random
import sys
import types

import pytest
import torch
from typer.testing import CliRunner

from stochprune.bench import KIND, cases, run
from stochprune.bench.case import PARTS, Case
from stochprune.bench.ops import OPS, linear_ways
from stochprune.bench.row import Row, fast_p
from stochprune.bench.turns import median_interval
from stochprune.cli import app

SIZES = {"rows": 24, "cols": 40, "tokens": 6}


class Few(type(OPS["linear"])):
    """Without the contender that compiles for seconds."""

    laws = types.MappingProxyType({"dense": "none", **dict.fromkeys(("ours", "eager", "seed replay"), "bernoulli")})


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setitem(OPS, "linear", Few())
    parts = {"joint": ("forward", "backward", "step"), "mask-only": ("forward", "step")}
    made = [Case("ops", "linear", SIZES, "float32", mode, parts[mode]) for mode in parts]
    monkeypatch.setitem(cases.GROUPS, "ops", made)
    monkeypatch.setattr("stochprune.bench.roof.COPIED", 1 << 16)
    monkeypatch.setattr("stochprune.bench.roof.LONGEST", 0.001)


def bench(out, *options):
    return CliRunner(env={"COLUMNS": "160"}).invoke(
        app, ["bench", "run", "ops", "--out", str(out), "--seconds", "0.01", *options]
    )


def results(out):
    [path] = out.glob("bench-*/results.json")
    return json.loads(path.read_text())


def test_rows_of_every_contender(few, tmp_path):
    state, other = torch.get_rng_state(), random.getstate()
    found = bench(tmp_path)
    assert found.exit_code == 0, found.output
    content = results(tmp_path)
    assert content["left"] == 0 and content["kind"] == KIND and content["roof"]["bandwidth"] > 0
    rows = {(row["mode"], row["contender"], row["part"]): row for row in content["rows"]}
    assert len(rows) == (3 + 2) * 4
    for (mode, contender, _), row in rows.items():
        assert 0 < row["p20"] <= row["p50"] <= row["p80"] and row["rounds"] >= 7
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert (row["ratio"] == 1) == (contender == "dense")
        assert row["weights"] == 24 * 40 and row["peak"] > 0 and row["roof"] > 0
        assert row["bits_equal"] == (True if contender == "ours" else None)
        if contender == "ours":
            assert row["best_other"] in ("eager", "seed replay") and row["advantage"] > 0
            assert row["saved"] <= 16  # seed and draw, not a byte of a mask
        if contender == "eager":
            assert row["saved"] >= 24 * 40 * (12 if mode == "joint" else 8)
    assert {row["contender"] for row in content["fast_p"]} == {"ours", "seed replay"}
    assert torch.equal(state, torch.get_rng_state()) and other == random.getstate(), "a global generator has moved"


def test_a_stopped_run_continues(few, tmp_path, monkeypatch):
    measure = run.measure

    def dies(case, *rest):
        if case.mode == "mask-only":
            raise OSError(28, "No space left on device")
        return measure(case, *rest)

    monkeypatch.setattr(run, "measure", dies)
    assert "No space" in bench(tmp_path).output
    before = results(tmp_path)
    assert before["left"] == 1
    monkeypatch.setattr(run, "measure", measure)
    assert bench(tmp_path).exit_code == 0
    after = results(tmp_path)
    assert after["left"] == 0 and after["rows"][: len(before["rows"])] == before["rows"]
    assert after["roof"] == before["roof"] and after["load"] == before["load"]  # of the rows that are kept
    monkeypatch.setattr("stochprune.bench.roof.measure", None)
    assert bench(tmp_path).exit_code == 0 and results(tmp_path) == after  # nothing is left to measure


def test_the_shell_of_a_user_changes_nothing(few, tmp_path, monkeypatch):
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -k nothing\n")
    (tmp_path / "conftest.py").write_text("raise RuntimeError\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_ADDOPTS", "--benchmark-disable -k nothing")
    monkeypatch.setenv("PYTEST_PLUGINS", "not_there")
    path = [*sys.path]
    assert bench(tmp_path / "out", "--only", "mask-only").exit_code == 0
    assert sys.path == path and os.environ["PYTEST_PLUGINS"] == "not_there"
    assert {each.name for each in tmp_path.iterdir()} == {"pytest.ini", "conftest.py", "out"}


def test_other_code_and_threads_have_folders_of_their_own(few, tmp_path, monkeypatch):
    for commit in ("abc", "abc+1234"):
        monkeypatch.setattr("stochprune.bench.about.commit", lambda commit=commit: commit)
        for threads in ("1", "2"):
            assert bench(tmp_path, "--only", "mask-only", "--threads", threads).exit_code == 0
    monkeypatch.setenv("STOCHPRUNE_BACKEND", "reference")
    assert bench(tmp_path, "--only", "mask-only").exit_code == 0
    backends = [json.loads(path.read_text())["backend"] for path in tmp_path.glob("bench-*/results.json")]
    assert len(backends) == 5 and sum("reference" in name for name in backends) == 1


def test_a_wrong_contender_has_no_speed(few, tmp_path, monkeypatch):
    ways = {
        "seed replay": lambda w, logits, b: lambda x: x @ w.T + b + 0 * logits.sum(),
        "ours": lambda w, logits, b: lambda x: x @ (w * logits).T + b,
    }
    for name, way in ways.items():
        monkeypatch.setitem(linear_ways.CONTENDERS, name, way)
    found = bench(tmp_path, "--only", "joint")
    assert found.exit_code == 1 and "ours of linear is wrong" in found.output
    rows = [row for row in results(tmp_path)["rows"] if row["contender"] in ("seed replay", "ours")]
    assert len(rows) == 2 * 3 and all(row["wrong"] and row["p50"] is None and row["ratio"] is None for row in rows)
    [speed] = [row for row in results(tmp_path)["fast_p"] if row["contender"] == "ours"]
    assert speed["fast_1"] == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("nothing",), "nothing"),
        (("--only", "conv9d"), "conv9d"),
        (("--seconds", "-1"), "seconds"),
        (("--threads", "-2"), "threads"),
    ],
)
def test_errors_are_one_line(few, tmp_path, options, named):
    found = bench(tmp_path, *options)
    assert found.exit_code == 1 and "error:" in found.output and named in found.output
    assert "Traceback" not in found.output


def row(contender, p50, wrong=None, tokens=1, law="bernoulli", part="step"):
    case = "ops", "linear", {"tokens": tokens}, "float32", "joint"
    return Row(*case, part, contender, law, wrong=wrong, p50=p50)


def test_fast_p_counts_wrong_as_slow():
    rows = [row("eager", 8.0), row("ours", 4.0), row("eager", 8.0, tokens=2), row("ours", None, "nan", tokens=2)]
    rows.append(row("fixed masks", 1.0, law="fixed"))  # without an eager way of this law there is no ratio
    assert fast_p(rows) == [
        {"contender": "ours", "cases": 2, "fast_1": 0.5, "fast_1.5": 0.5, "fast_2": 0.5, "fast_4": 0}
    ]


@pytest.mark.parametrize("times", [(8.0, 3.0), (3.0, 8.0)])
def test_the_fastest_of_several_eager_ways_is_the_measure(times):
    rows = [
        row("eager", times[0]),
        row("eager, bernoulli", times[1]),
        row("eager, again", None, "nan"),
        row("ours", 4.0),
        row("compile", 2.0),
    ]
    rows += [row("eager", 1.0, law="fixed")]  # of another law
    found = {speed["contender"]: speed for speed in fast_p(rows)}
    assert [*found] == ["ours", "compile"] and found["ours"]["fast_1"] == 0
    assert found["compile"]["fast_1.5"] == 1 and found["compile"]["fast_2"] == 0


def test_fast_p_counts_one_part_of_a_case():
    parts = [row(name, time, part=part) for name, time in (("eager", 2.0), ("ours", 1.0)) for part in PARTS]
    assert [speed["cases"] for speed in fast_p(parts)] == [1]
    assert [speed["cases"] for speed in fast_p([each for each in parts if each.part != "step"])] == [1]
    wrong_step = [each for each in parts if (each.contender, each.part) != ("eager", "step")]
    assert fast_p([*wrong_step, row("eager", None, "nan")]) == []  # no forward pass instead


def test_interval_of_the_median():
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert median_interval([float(i) for i in range(1, 11)]) == (2.0, 9.0)  # a table: n = 10, 95 per cent
    assert median_interval([float(i) for i in range(1, 26)]) == (8.0, 18.0)  # n = 25
