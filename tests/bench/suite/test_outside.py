"""``stochprune bench run --contenders``: a user's contenders are checked and timed like those of the suite."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from stochprune.bench.case import Case
from stochprune.bench.ops import OPS
from stochprune.bench.outside import with_contenders
from stochprune.cli import app
from tests.bench.suite.test_run import few  # noqa: F401

MODULE = """
import torch
import torch.nn.functional as F
from stochprune.bench.case import Absent
from stochprune.bench.ops import linear_nm_ways, linear_ways

def scaled(weight, logits, bias):
    return lambda x: linear_ways.eager(1.01 * weight, logits, bias)(x)

def patterns(weight, logits, bias):
    if logits.shape[-1] != 6:
        raise Absent("2:4 only")
    return linear_nm_ways.maskllm(2, 4)(weight, logits, bias)

RIGHT = {"linear": {"mine": ("bernoulli", linear_ways.bernoulli), "wrong": ("bernoulli", scaled)},
         "linear_nm": {"patterns": ("categorical", patterns)}, "attention": {"none": ("none", lambda *tensors: None)}}
NUMBERS = [1, 2]
CASES = {
    "op": {"conv9d": {"mine": ("bernoulli", scaled)}},
    "network": {"resnet20": {"mine": ("bernoulli", scaled)}},
    "law": {"linear": {"mine": ("gaussian", scaled)}},
    "pair": {"linear": {"mine": scaled}},
    "name": {"linear": {"compile": ("bernoulli", scaled)}},
    "ours": {"linear": {"ours, mine": ("bernoulli", scaled)}},
    "empty": {"linear": {"": ("bernoulli", scaled)}},
    "list": {"linear": [1]},
}
globals().update({name.upper(): value for name, value in CASES.items()})
"""


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """A module of its own for each test, because imports are kept."""
    name = f"contenders_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def run(out, contenders):
    options = ["--out", str(out), "--seconds", "0.01", "--only", "joint", "--contenders", contenders]
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, ["bench", "run", "ops", *options])


def test_a_contender_is_timed_and_a_wrong_one_is_not(few, tmp_path, module):  # noqa: F811
    ended = run(tmp_path / "out", f"{module}:RIGHT")
    assert ended.exit_code == 0, ended.output
    [path] = (tmp_path / "out").glob("bench-*/results.json")
    content = json.loads(path.read_text())
    rows = {(row["contender"], row["part"]): row for row in content["rows"]}
    mine, wrong = rows["mine", "step"], rows["wrong", "step"]
    assert mine["p50"] > 0 and mine["law"] == "bernoulli" and mine["bits_equal"] is None
    assert wrong["p50"] is None and "weights" in wrong["wrong"]
    assert {"mine", "wrong"} <= {row["contender"] for row in content["fast_p"]}
    assert "mine" not in OPS["linear"].laws
    source = tmp_path / f"{module}.py"
    source.write_text(source.read_text() + "# changed\n")
    assert run(tmp_path / "out", f"{module}:RIGHT").exit_code == 0
    assert len([*(tmp_path / "out").glob("bench-*")]) == 2, "another file of contenders continued a run"


def test_a_contender_may_be_absent_from_some_shapes(module):
    ops, _ = with_contenders(OPS, f"{module}:RIGHT")
    case = Case("ops", "linear_nm", {"rows": 24, "cols": 40, "tokens": 16, "n": 2, "m": 4})
    with torch.random.fork_rng():
        assert ops["linear_nm"].check("patterns", case, torch.device("cpu")).wrong is None
    with pytest.raises(Exception, match="2:4 only"):
        ops["linear_nm"].check("patterns", Case("ops", "linear_nm", {**case.shape, "n": 1}), torch.device("cpu"))


@pytest.mark.parametrize(
    ("attribute", "named"),
    [
        ("OP", "conv9d"),
        ("NETWORK", "resnet20"),
        ("LAW", "gaussian"),
        ("PAIR", "pair"),
        ("NAME", "compile"),
        ("OURS", "ours, mine"),
        ("EMPTY", "text"),
        ("LIST", "list"),
        ("NUMBERS", "list"),
        ("NOTHING", "NOTHING"),
        ("", "module:attribute"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, module, attribute, named):
    ended = run(tmp_path / "out", f"{module}:{attribute}")
    assert ended.exit_code == 1 and "contenders" in ended.output and named in ended.output.replace("\n", "")
    assert "Traceback" not in ended.output and not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["no_such_module:X", "math", ":", ".:x", "..x:y", "math:pi", "a b:c", "json:x\ny"])
def test_what_is_no_module_is_one_line(tmp_path, text):
    ended = run(tmp_path / "out", text)
    assert ended.exit_code == 1 and "PYTHONPATH" in ended.output and "Traceback" not in ended.output
    assert ended.output.count("\n") == 1
