"""The command line, end to end."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import stochprune
from stochprune.cli import app
from tests.runs.owners import STUDY

TINY = {
    "--scores": "magnitude,random",
    "--sparsities": "0.9",
    "--seeds": "2",
    "--dense-epochs": "1",
    "--epochs": "1",
    "--retrain-epochs": "1",
    "--batch-size": "512",
    "--draws": "2",
}


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def invoke_finetune(out: Path, **changed: str) -> Result:
    options = {**TINY, "--out": out, **changed}
    return invoke("finetune", *itertools.chain(*options.items()))


def test_finetune(tmp_path):
    result = invoke_finetune(tmp_path)
    assert result.exit_code == 0, result.output
    (folder,) = tmp_path.iterdir()
    content = json.loads((folder / "results.json").read_text())
    assert content["configuration"]["seeds"] == 2 and len(content["cells"]) == 4
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")
    for part in ("magnitude", "random", "90%", "results.json"):
        assert part in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"--sparsities": "0.9,1.2"}, "sparsities.*got 1.2"),
        ({"--sparsities": "most"}, "sparsities.*got 'most'"),
        ({"--scores": "grad"}, "score 'grad'"),
        ({"--data": "cifar"}, "cifar"),
        ({"--data": "mnist", "--data-dir": "missing"}, "missing"),
        ({"--model": "vgg"}, "vgg"),
        ({"--logit-lr": "-1"}, "logit_lr.*got -1.0"),
    ],
)
def test_errors_are_one_line_without_a_traceback(tmp_path, options, message):
    result = invoke_finetune(tmp_path, **options)
    assert result.exit_code == 1
    assert "error:" in result.output and re.search(message, result.output)
    assert "Traceback" not in result.output


def test_help_names_every_option_of_the_configuration():
    output = CliRunner(env={"COLUMNS": "120", "TERMINAL_WIDTH": "120"}).invoke(app, ["finetune", "--help"]).output
    for option in ("--data-dir", "--sparsities", "--logit-lr", "--estimator", "--budget", "--retrain-epochs", "--out"):
        assert option in output


def test_study(tmp_path):
    (tmp_path / "mine.yaml").write_text(STUDY)
    result = invoke("study", tmp_path / "mine.yaml", "--out", tmp_path / "runs")
    assert result.exit_code == 0, result.output
    (folder,) = (tmp_path / "runs").glob("mine-*")
    assert {path.name for path in folder.iterdir()} >= {"results.json", "tables.md", "errors.csv", "errors.png"}
    for part in ("Two masks", "magnitude", "shuffle", "results.json"):
        assert part in result.output


def test_an_unknown_study_is_one_line_without_a_traceback():
    result = invoke("study", "imune")
    assert result.exit_code == 1 and "'imune'" in result.output
    assert "Traceback" not in result.output


def test_backends_and_version():
    assert invoke("backends").output.strip() == stochprune.backends.table().strip()
    assert invoke("--version").output.strip() == stochprune.__version__


@pytest.mark.parametrize("command", [["finetune"], ["certify"], ["bounds"], ["study", "finetune"], ["bench"]])
def test_a_device_that_is_not_there_is_one_line(tmp_path, command):
    out = [] if command == ["bench"] else ["--out", tmp_path]
    for device, message in (
        ("cuda:99", "cuda:99"),
        ("gpu", "got 'gpu'"),
    ):
        result = invoke(*command, *out, "--device", device)
        assert result.exit_code == 1 and "Traceback" not in result.output
        assert message in result.stderr and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
