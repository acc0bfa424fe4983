"""``make gpu-science``: its studies, and a run that is stopped by the time and continued."""

from __future__ import annotations

import json

import pytest

from bench.gpu.science import __main__ as science
from stochprune import studies


@pytest.mark.parametrize("study", science.STUDIES, ids=lambda path: path.stem)
def test_the_studies_are_of_resnet20_on_all_images(study):
    plan = studies.load(str(study))
    assert (plan.data, plan.models, plan.seeds >= 3) == (("cifar10",), ("resnet20",), True)
    assert studies.load(str(study), small=True).data == ("digits",)


@pytest.mark.slow
def test_stopped_by_the_time_and_continued(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(science, "STUDIES", [path for path in science.STUDIES if path.stem == "prospr"])
    monkeypatch.setenv("OUT", str(tmp_path / "copy"))
    options = ["--small", "--device", "cpu", "--out", str(tmp_path / "runs")]
    assert science.main([*options, "--minutes", "0.02"]) == 0
    assert "prospr: stopped" in capsys.readouterr().out
    assert science.main(options) == 0
    (results,) = (tmp_path / "copy" / "runs").glob("prospr-small-*/results.json")
    assert {row["score"] for row in json.loads(results.read_text())["rows"]} == {"dense", "magnitude"}


@pytest.mark.slow
def test_a_study_that_fails(tmp_path, capsys):
    assert science.main(["--device", "cpu", "--out", str(tmp_path), "--data-dir", str(tmp_path)]) == 1
    failed = capsys.readouterr()
    assert all(f"{path.stem}: failed" in failed.err for path in science.STUDIES) and str(tmp_path) in failed.err
