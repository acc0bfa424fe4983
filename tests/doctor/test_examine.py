"""What the doctor says, in text and in JSON, also where packages and the extension are missing."""

from __future__ import annotations

import importlib.metadata
import json
import re

import pytest
from typer.testing import CliRunner

from stochprune import backends, native, reference
from stochprune.cli import app
from stochprune.doctor import bug_report, examine
from stochprune.doctor.packages import Package, packages
from tests.test_extras import without_extras


@pytest.fixture(scope="module")
def examination():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stochprune.doctor.self_test._on_cpu", lambda name: [])
        return examine()


def test_the_examination_is_complete_and_survives_json(examination):
    again = json.loads(json.dumps(examination))
    assert bug_report(again) == bug_report(examination)
    assert examination["passed"] is True
    assert {state["name"] for state in again["backends"]} == {"native", "triton", "cuda", "reference"}
    assert set(again["compilers"]) == {"g++", "nvcc", "ninja", "cmake"}
    assert again["machine"]["cores"] >= 1
    assert {"torch", "numpy", "triton", "matplotlib"} <= {package["name"] for package in again["packages"]}


@pytest.mark.usefixtures("without_interpreter")
def test_the_command_prints_tables_and_one_block():
    result = CliRunner(env={"COLUMNS": "150"}).invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    tables, _, block = result.output.partition("```text\n")
    assert "native" in tables and "self-tests:" in block and result.output.count("```") == 2


@pytest.mark.usefixtures("without_interpreter")
def test_the_command_fails_where_a_self_test_fails(monkeypatch):
    monkeypatch.setattr(native, "keep_mask", lambda threshold, mask: ~reference.keep_mask(threshold, mask=mask))
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["passed"] is False and "native" in found["problems"][0] and "keep mask" in found["problems"][0]


@pytest.mark.usefixtures("without_interpreter")
@pytest.mark.parametrize("name", ["nope", "cuda"])
def test_a_chosen_backend_that_serves_no_layer_is_a_problem(monkeypatch, name):
    monkeypatch.setenv(backends.OVERRIDE, name)
    (problem,) = (text for text in examine()["problems"] if backends.OVERRIDE in text)
    assert name in problem


BARE = """
sys.modules["stochprune._C"] = None
sys.argv = ["stochprune", "doctor", "--json"]
from stochprune.__main__ import main
main()
"""


def test_the_doctor_works_on_torch_and_numpy_alone_without_the_extension():
    ended = without_extras(BARE)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    states = {(state["device"], state["name"]): state for state in found["backends"]}
    assert "stochprune[gpu]" in states["cuda", "triton"]["reason"] and not states["cuda", "triton"]["usable"]
    assert states["cpu", "native"]["reason"].startswith("not available") and "install cmake" in found["problems"][0]
    assert [test["backend"] for test in found["self_tests"]] == ["contract", "reference"]


@pytest.mark.parametrize(
    ("range", "extras", "installed", "fits"),
    [
        (">=3.6", ("gpu",), "3.7.1", True),
        (">=3.6", ("gpu",), "3.10", True),
        (">=3.6", ("gpu",), "3.5.9", False),
        (">=3.6", ("gpu",), None, True),
        (">=2.11", (), None, False),
        ("==3.7.1", (), "3.7.0", False),
        ("", (), "0", True),
    ],
)
def test_which_versions_fit(range, extras, installed, fits):
    package = Package("p", range, extras, installed)
    assert package.fits is fits and ("needs" in str(package)) is not fits


def test_every_requirement_is_read(monkeypatch):
    declared = importlib.metadata.requires("stochprune")
    names = {re.split(r"[;\[]|>=", text)[0].strip() for text in declared if 'extra == "dev"' not in text}
    assert names <= {package.name for package in packages()}
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["Torch>=99 ; python_version > '3'", "odd @ url"])
    (package,) = packages()
    assert (package.name, package.fits, package.extras) == ("torch", False, ())


def test_a_misspelt_variable_is_named_without_its_value(monkeypatch):
    monkeypatch.setenv("STOCHPRUNE_BACKENDS", "secret")
    monkeypatch.setenv("STOCHPRUNE_CPU", "scalar")
    found = examine()
    assert any("STOCHPRUNE_BACKENDS" in problem for problem in found["problems"])
    assert found["variables"]["STOCHPRUNE_CPU"] == "scalar" and "secret" not in json.dumps(found)
