"""``stochprune bench compare``: what it says of changed, missing and wrong rows, and of files of strangers."""

from __future__ import annotations

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from stochprune.bench import KIND
from stochprune.bench.compare import Results, compare, read
from stochprune.bench.row import Row
from stochprune.cli import app
from stochprune.runs.files import CheckpointError, write_json

SHAPE = {"rows": 64, "cols": 64, "tokens": 8}


def row(contender="ours", ratio=1.5, half=0.05, part="step", **changes):
    times = {"ratio": ratio, "ratio_low": ratio and ratio - half, "ratio_high": ratio and ratio + half}
    found = Row("ops", "linear", SHAPE, "float32", "joint", part, contender, "bernoulli", **times)
    return dataclasses.replace(found, **changes)


def content(*rows, **changes):
    facts = {"commit": "c" * 40, "machine": "CPU", "device": "cpu", "threads": 1, "left": 0, "configuration": {}}
    rows = [dataclasses.asdict(row) for row in rows]
    return {"kind": KIND, **facts, "versions": {"torch": "2"}, "rows": rows, **changes}


def results(*rows, **changes):
    return Results(**content(*rows, **changes) | {"rows": [*rows]})


def run(tmp_path, one, other, *options):
    for name, found in (("a", one), ("b", other)):
        (tmp_path / name).mkdir(exist_ok=True)
        write_json(tmp_path / name / "results.json", found)
    paths = [str(tmp_path / "a"), str(tmp_path / "b" / "results.json")]
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["bench", "compare", *paths, *options])


@pytest.mark.parametrize(
    ("after", "half", "verdict", "fails"),
    [
        (1.5, 0.05, "no difference shown", False),
        (2.0, 0.05, "slower", True),
        (2.0, 0.5, "no difference shown", False),  # the intervals overlap
        (1.65, 0.01, "slower", False),  # by 10 per cent: within the tolerance
        (1.0, 0.05, "faster", False),
    ],
)
def test_verdicts_and_the_exit_status(tmp_path, after, half, verdict, fails):
    ended = run(tmp_path, content(row()), content(row(ratio=after, half=half)))
    assert verdict in ended.output and ended.exit_code == fails, ended.output


def test_the_tolerance_is_an_option(tmp_path):
    pair = content(row()), content(row(ratio=2.0))
    assert run(tmp_path, *pair, "--tolerance", "0.5").exit_code == 0
    assert run(tmp_path, *pair, "--tolerance", "0.2").exit_code == 1


def test_the_interval_holds_both_ends():
    [found] = compare(results(row(ratio=2.0, half=0.5)), results(row(ratio=3.0, half=1.0))).changes
    assert (found.change, found.low, found.high) == (1.5, 2.0 / 2.5, 4.0 / 1.5)


def test_nothing_is_dropped_silently(tmp_path):
    ours = row(part="forward")
    one = content(row(), ours, row("eager", part="forward"), row("ours, cached thresholds", absent="no cache"), left=2)
    other = content(
        row(),
        dataclasses.replace(ours, ratio=None, ratio_low=None, ratio_high=None),
        row("eager", ratio=None, wrong="gradient\nof x"),
        machine="GPU",
        versions={"torch": "3"},
        configuration={"small": True},
    )
    ended = run(tmp_path, one, other)
    assert ended.exit_code == 0
    for said in (
        "different machine: A 'CPU', B 'GPU'",
        "different version of torch: A '2', B '3'",
        "A is not finished: 2",
        "B was run with --small",
        "absent in A: ours, cached thresholds in ops/linear",
        "only in A: ours, cached thresholds",
        "only in A: eager in ops/linear/rows=64,cols=64,tokens=8/float32/joint, forward",
        "only in B: eager in ops/linear/rows=64,cols=64,tokens=8/float32/joint, step",
        r"wrong in B: eager in ops/linear/rows=64,cols=64,tokens=8/float32/joint: 'gradient\nof x'",
        "no ratio",
    ):
        assert said in ended.output, said


def test_ours_that_became_wrong_fails(tmp_path):
    ended = run(tmp_path, content(row()), content(row(ratio=None, wrong="other bits")))
    assert ended.exit_code == 1 and "other bits" in ended.output and "wrong now" in ended.output


def test_runs_without_a_common_ratio(tmp_path):
    ended = run(tmp_path, content(row()), content(row(part="forward")))
    assert ended.exit_code == 1 and "in common" in ended.output and "Traceback" not in ended.output


HOSTILE = {
    "another kind": content(row(), kind="study"),
    "no rows": {key: value for key, value in content().items() if key != "rows"},
    "rows of numbers": content() | {"rows": [1, 2]},
    "a ratio of zero": content(row(ratio=1.0, half=1.0)),
    "an interval without its ratio": content(row(ratio_low=2.0)),
    "the same row twice": content(row(), row()),
    "a name with control characters": content(row("ours\x1b[2J")),
    "a ratio that is a text": content(row(ratio_high="1")),
    "a shape that is a list": content(row(shape=[1])),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_of_strangers_are_refused(tmp_path, name):
    write_json(tmp_path / "results.json", HOSTILE[name])
    with pytest.raises(CheckpointError, match="results"):
        read(tmp_path)


@pytest.mark.parametrize("cut", [0, 10, -3])
def test_a_truncated_or_missing_file_is_one_line(tmp_path, cut):
    good = content(row())
    run(tmp_path, good, good)
    path = tmp_path / "b" / "results.json"
    path.write_text(path.read_text()[:cut]) if cut else path.unlink()
    ended = CliRunner().invoke(app, ["bench", "compare", str(tmp_path / "a"), str(path)])
    assert ended.exit_code == 1 and str(path) in ended.output.replace("\n", "") and "Traceback" not in ended.output


def test_a_changed_number_is_seen(tmp_path):
    good = content(row())
    run(tmp_path, good, good)
    path = tmp_path / "b" / "results.json"
    changed = json.loads(path.read_text())
    changed["rows"][0]["ratio"] = 1.51
    path.write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match="digest"):
        read(path)
