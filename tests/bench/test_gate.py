"""``make bench-gate``: what it decides on synthetic numbers, and the command on two packages of which one is slower."""

from __future__ import annotations

import numpy as np
import pytest

from bench import gate, gate_cases
from stochprune.seeding import generator

TRIALS = 200


def failures(slowdown, noise, name, trials=TRIALS):
    """How many trials fail: eight pairs of processes, whose ratios vary by ``noise``."""
    found = 0
    for trial in range(trials):
        numbers = generator(0, name, str(trial))
        base, head = (1.4 * np.exp(noise * numbers.standard_normal(gate.PAIRS)) for _ in range(2))
        found += gate.decide([*base], [*(slowdown * head)]).fails(0.1)
    return found


def test_a_slowdown_of_20_per_cent_is_found():
    assert failures(1.2, 0.03, "slow") >= 0.99 * TRIALS


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.2])
def test_noise_alone_does_not_fail(noise):
    assert failures(1.0, noise, "noise") <= 0.01 * TRIALS


def test_a_slowdown_at_the_tolerance_fails_as_often_as_the_interval_says():
    assert failures(1.1, 0.05, "edge", 1000) == pytest.approx(25, abs=20)  # 2.5 per cent, four standard deviations


def test_the_verdict_is_symmetric_and_ordered():
    found, back = gate.decide([1.0, 2.0], [1.5, 2.5]), gate.decide([1.5, 2.5], [1.0, 2.0])
    assert found.low < found.change < found.high and found.change == pytest.approx(np.sqrt(1.5 * 1.25))
    assert (1 / back.change, 1 / back.high) == pytest.approx((found.change, found.low))


def test_a_ratio_counts_calls_and_not_rounds():
    """A contender with several calls a round has the time of one call."""
    work = np.ones(20_000)
    runs = {"ours": lambda: [work.sum() for _ in range(12)], "dense": lambda: [work.sum() for _ in range(4)]}
    assert gate_cases.ratio(runs, rounds=5) == pytest.approx(3, rel=0.5)


@pytest.mark.parametrize("name", gate_cases.CASES)
def test_every_case_runs(name):
    runs = gate_cases.CASES[name]()
    ours, dense = runs["ours"](), runs["dense"]()
    assert [g.shape for g in ours[:-1]] == [g.shape for g in dense] and ours[-1].shape == ours[1].shape
    assert not ours[1].equal(runs["ours"]()[1]), "two steps have the same mask"


@pytest.mark.parametrize("options", [("--pairs", "1"), ("--base", "no-such-commit")])
def test_wrong_options_are_named(options, capsys):
    with pytest.raises(SystemExit) as ended:
        gate.main(options)
    assert ended.value.code == 2 and options[1] in capsys.readouterr().err


SLOWER = """
import time
import stochprune as sp
quick = sp.functional.masked_conv2d
def masked_conv2d(*arguments, **options):
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    return quick(*arguments, **options)
sp.functional.masked_conv2d = masked_conv2d
"""


@pytest.mark.slow
def test_the_command_finds_the_slower_case(tmp_path, monkeypatch, capsys):
    sites = [tmp_path / "base", tmp_path / "head"]
    for site in sites:
        site.mkdir()
        (site / "stochprune").symlink_to(gate.ROOT / "stochprune")
    (sites[1] / "sitecustomize.py").write_text(SLOWER)  # Python imports it at its start
    monkeypatch.setattr(gate, "BUILD", tmp_path)
    monkeypatch.setattr(gate, "CALLS", 10)
    monkeypatch.setattr(gate, "installed", lambda commit: sites.pop(0))
    assert gate.main(["--base", "HEAD", "--pairs", "3"]) == 1
    out = capsys.readouterr().out
    failed = [line for line in out.splitlines() if "FAILS" in line]
    assert [line for line in failed if "convolution" in line] and not [line for line in failed if "linear" in line]
    assert "instructions, by" not in out or [line for line in failed if "instructions" in line]


@pytest.mark.slow
def test_a_package_from_elsewhere_is_refused(tmp_path, monkeypatch):
    """An empty folder has no package, so Python finds the one of this environment."""
    monkeypatch.setattr(gate, "BUILD", tmp_path)
    with pytest.raises(RuntimeError, match=str(tmp_path / "site")):
        gate.measured(tmp_path / "site")
