"""A run: its folder, its checkpoint, its results."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from stochprune.runs import CheckpointError, Config, digest, open_run, option, read_json, run_folder


@dataclasses.dataclass(frozen=True)
class Small(Config):
    epochs: int = option(2, "Epochs.")
    sizes: tuple[int, ...] = option((1, 2), "Sizes.")


class Tanhs(torch.nn.Linear):
    """A layer with the tensors of another, and another forward."""

    def forward(self, x):
        return super().forward(x).tanh()


def model(value=1.0, kind=torch.nn.Linear):
    layer = torch.nn.utils.skip_init(kind, 2, 2)
    torch.nn.init.constant_(layer.weight, value), torch.nn.init.zeros_(layer.bias)
    return layer


def test_the_folder_is_named_after_the_configuration(tmp_path):
    name = run_folder(tmp_path, "job", Small()).name
    assert name == f"job-{digest(Small())}" and run_folder(tmp_path, "job", Small(epochs=3)).name != name
    shared = [run_folder(tmp_path, "job", Small(epochs=n), exclude=("epochs",), suffix="-x") for n in (2, 3)]
    assert shared[0] == shared[1] and shared[0].name.endswith("-x")


def test_results_hold_configuration_versions_and_what_was_found(tmp_path):
    with open_run(Small(), tmp_path / "a") as run:
        written = run.write({"history": [1.5]}, torch.device("cpu"))
    content = read_json(tmp_path / "a" / "results.json", "results")
    assert list(content) == list(written) == ["configuration", "versions", "history"]
    assert content["configuration"] == {"epochs": 2, "sizes": [1, 2]} and content["history"] == [1.5]
    assert content["versions"]["device"] == "cpu" and content["versions"] == written["versions"]


def test_nothing_is_kept_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_run(Small(), None) as run:
        assert run.checkpoint(1, model()) is None
        assert run.write({"n": 1})["n"] == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "key", "start"),
    [
        (Small(epochs=3), "", (model(), "data")),
        (Small(), "other", (model(), "data")),
        (Small(), "", (model(2.0), "data")),
        (Small(), "", (model(kind=Tanhs), "data")),
        (Small(), "", (model(), "more")),
        (Small(), "", (model(),)),
    ],
)
def test_a_checkpoint_is_of_one_configuration_and_one_start(tmp_path, config, key, start):
    with open_run(Small(), tmp_path) as run:
        run.checkpoint(1, model(), "data").save({"n": 1})
    with open_run(Small(), tmp_path) as run:
        assert run.checkpoint(5, model(), "data", "").load()["n"] == 1
    with open_run(config, tmp_path, key) as run, pytest.raises(CheckpointError, match="another run"):
        run.checkpoint(1, *start).load()


def test_the_folder_is_held(tmp_path):
    with open_run(Small(), tmp_path), pytest.raises(CheckpointError, match="another process"):
        open_run(Small(), tmp_path).__enter__()
    with open_run(Small(), tmp_path):
        pass
