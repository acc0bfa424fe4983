"""The group ``scaling``: its op is checked, its slopes are those of known laws, its table states the goal."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from stochprune import functional
from stochprune.bench import cases, scaling
from stochprune.bench.case import Case
from stochprune.bench.ops import OPS
from stochprune.bench.row import Row
from stochprune.bench.scaling import fit, slopes
from stochprune.cli import app
from stochprune.seeding import generator

CPU = torch.device("cpu")
SIZES = {"rows": 24, "cols": 40, "tokens": 6, "draws": 5}


def rows(time, contender="ours"):
    """Rows whose time is a function of weights, tokens and draws, at the sizes of the group."""
    found = [Row(c.group, c.op, dict(c.shape), c.dtype, c.mode, "step", contender, "") for c in scaling.CASES]
    sizes = lambda row: (row.shape["rows"] * row.shape["cols"], row.shape["tokens"], row.shape["draws"])  # noqa: E731
    return [dataclasses.replace(row, p50=time(*sizes(row))) for row in found]


def test_the_cases_span_three_decades():
    for name in ("weights", "tokens", "draws"):
        [slope] = [slope for slope in slopes(rows(lambda w, m, d: 1.0)) if slope.against == name]
        assert slope.points == 7 and slope.largest / slope.smallest == pytest.approx(1000, rel=0.01)


def test_slopes_of_a_power_law_are_exact():
    found = {slope.against: slope for slope in slopes(rows(lambda w, m, d: 3.0 * w**0.97 * m**0.6 * d**1.2))}
    for name, slope, goal in (("weights", 0.97, "met"), ("tokens", 0.6, None), ("draws", 1.2, "missed")):
        assert found[name].slope == pytest.approx(slope) and found[name].goal == goal
        assert found[name].low <= found[name].slope <= found[name].high


def test_a_bend_makes_the_interval_wide():
    """A constant cost of a call bends the line below; the interval must not claim a precise slope."""
    found = {slope.against: slope for slope in slopes(rows(lambda w, m, d: 1e5 + w + d))}
    assert found["weights"].high - found["weights"].low > 0.2 and found["weights"].goal != "met"


def test_the_interval_covers_the_slope():
    x, hits = np.logspace(4, 7, 7), 0
    for trial in range(200):
        noise = generator(0, "slopes", str(trial)).standard_normal(7)
        slope, half = fit([*x], [*(x * np.exp(0.1 * noise))])
        hits += abs(slope - 1) <= half
    assert hits == pytest.approx(190, abs=12)  # 95 per cent, four standard deviations


def test_the_dense_layer_has_no_goal_and_wrong_rows_no_slope():
    assert {slope.goal for slope in slopes(rows(lambda w, m, d: float(w * d), "dense"))} == {None}
    wrong = [dataclasses.replace(row, p50=None) for row in rows(lambda w, m, d: 1.0)]
    assert slopes(wrong) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("contender", ["ours", "dense"])
def test_the_contenders_are_right(contender, dtype):
    case = Case("scaling", scaling.OP, SIZES, dtype)
    verdict = OPS[scaling.OP].check(contender, case, CPU)
    assert verdict.wrong is None and verdict.bits_equal is (True if contender == "ours" else None)
    y = OPS[scaling.OP].make(contender, case, CPU).forward()
    assert y.numel() == 5 * 6 * 24, "both contenders compute as many outputs"


@pytest.mark.parametrize("changed", [{"draw": 7}, {"stream": 3}, {"seed": 1}])
def test_another_address_is_seen(monkeypatch, changed):
    right = functional.masked_linear
    monkeypatch.setattr(functional, "masked_linear", lambda *given, **options: right(*given, **{**options, **changed}))
    verdict = OPS[scaling.OP].check("ours", Case("scaling", scaling.OP, SIZES), CPU)
    assert verdict.wrong is not None and verdict.bits_equal is False


def test_the_command_writes_slopes(monkeypatch, tmp_path):
    made = [Case("scaling", scaling.OP, {**SIZES, "draws": draws}, parts=("step",)) for draws in (1, 2, 4, 8)]
    monkeypatch.setitem(cases.GROUPS, "scaling", made)
    monkeypatch.setattr("stochprune.bench.roof.COPIED", 1 << 16)
    ended = CliRunner(env={"COLUMNS": "160"}).invoke(
        app, ["bench", "run", "scaling", "--out", str(tmp_path), "--seconds", "0.01"]
    )
    assert ended.exit_code == 0 and "0.95 to 1.05" in ended.output, ended.output
    [path] = tmp_path.glob("bench-*/results.json")
    found = json.loads(path.read_text())["slopes"]
    assert {(slope["against"], slope["contender"]) for slope in found} == {("draws", "ours"), ("draws", "dense")}
    assert all(slope["points"] == 4 and slope["fixed"] == {"weights": 960, "tokens": 6} for slope in found)
