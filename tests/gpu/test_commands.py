"""The commands on a GPU: what they find is close to the CPU's, and a folder of one device is read on the other."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from stochprune import studies
from stochprune.cli import app
from stochprune.pac_bayes import CertifyConfig, PriorConfig, RunConfig, SelfBoundConfig, replay, run_certify
from stochprune.studies import StudyConfig, run_study
from stochprune.theory.compare import BoundsConfig, run_bounds
from stochprune.training import FinetuneConfig

STUDY = StudyConfig(
    seeds=1,
    scores=("magnitude", "snip"),
    sparsities=(0.9,),
    dense_epochs=3,
    retrain_epochs=1,
    finetune=FinetuneConfig(epochs=2),
)
CERTIFY = RunConfig(
    posteriors=("masks", "gaussian", "spike_and_slab"),
    prior=PriorConfig(prior_epochs=6),
    self_bound=SelfBoundConfig(epochs=1, lr=0.2),
    certify=CertifyConfig(draws=200),
)


def test_finetune(tmp_path: Path, device: torch.device) -> None:
    (_, here), (folder, there) = (
        run_study(STUDY, out=tmp_path / str(place), device=place) for place in ("cpu", device)
    )
    assert there["versions"]["device"] == torch.cuda.get_device_name()
    for a, b in zip(here["cells"], there["cells"], strict=True):
        for arm in ("retrained", "finetuned", "ensemble"):
            assert abs(a["errors"][arm] - b["errors"][arm]) < 4, (arm, a["errors"], b["errors"])
    # On the CPU everything is found done.
    again, results = run_study(STUDY, out=tmp_path / str(device))
    assert again == folder and results["cells"] == there["cells"] and results["versions"]["device"] == "cpu"


@pytest.mark.parametrize("name", ["finetune", "immune"])
def test_study(name: str, tmp_path: Path, device: torch.device) -> None:
    folder, results = studies.run(studies.load(name, True), out=tmp_path, device=device)
    assert results["rows"] and (folder / "tables.md").exists()


def test_certify_and_replay(tmp_path: Path, device: torch.device) -> None:
    (home, here), (folder, there) = (
        run_certify(CERTIFY, out=tmp_path / str(place), device=place) for place in ("cpu", device)
    )
    assert folder.name == home.name
    for a, b in zip(here["rows"], there["rows"], strict=True):
        assert abs(a["bound"] - b["bound"]) < 0.05, (a["family"], a["objective"])
        for draw in (0, 199):
            on_cpu, on_gpu = (
                replay(folder / f"{b['family']}-{b['objective']}.json", draw, device=place) for place in ("cpu", device)
            )
            assert on_gpu.found == on_gpu.stated and on_cpu.kept == on_gpu.kept
            assert abs(on_cpu.found - on_cpu.stated) <= 1 / 64  # one example, if rounding decides it
            replay(home / f"{a['family']}-{a['objective']}.json", draw, device=device)


def test_a_prior_goes_on_from_the_other_device(tmp_path: Path, device: torch.device) -> None:
    """Its checkpoint is of the same start, so that it is loaded."""
    config = dataclasses.replace(CERTIFY, posteriors=("masks",))
    folder, there = run_certify(config, out=tmp_path, device=device)
    (folder / "results.json").unlink()
    _, here = run_certify(config, out=tmp_path)
    assert [row["bound"] for row in here["rows"]] == [row["bound"] for row in there["rows"]]


def test_bounds(tmp_path: Path, device: torch.device) -> None:
    config = BoundsConfig(layers=3, epochs=8, rounds=1, round_epochs=1, draws=100, sketch_sizes=(4,), sketch_trials=1)
    (_, here), (_, there) = (run_bounds(config, out=tmp_path / str(place), device=place) for place in ("cpu", device))
    assert abs(here["test_error"] - there["test_error"]) < 0.04
    assert [row["name"] for row in here["bounds"]] == [row["name"] for row in there["bounds"]]


def test_commands_take_the_gpu_by_themselves(tmp_path: Path) -> None:
    options = ["--scores", "magnitude", "--sparsities", "0.9", "--seeds", "1", "--dense-epochs", "1", "--epochs", "1"]
    run = CliRunner().invoke(app, ["finetune", *options, "--retrain-epochs", "1", "--out", str(tmp_path)])
    assert run.exit_code == 0, run.output
    (path,) = tmp_path.glob("*/results.json")
    assert json.loads(path.read_text())["versions"]["device"] == torch.cuda.get_device_name()
