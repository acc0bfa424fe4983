"""Runs in several ranks: equal to one process, and whole whatever happens to a rank."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stochprune.runs import load_tensors, ranks
from tests.runs.test_killed import close, contents, without_times

pytest.importorskip("transformers")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folders of all cases of launching.py."""
    out = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (out / "log").open("w") as log:
        command = [sys.executable, "-m", "tests.runs.launching", str(out)]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            status = process.wait(timeout=400)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert status == 0, (out / "log").read_text()
    return out


def results(folder):
    (path,) = folder.glob("*/results.json")
    return without_times(json.loads(path.read_text()))


def differences(first, second):
    """Return the largest difference of the tensors of two states."""
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def test_all_ranks_hold_the_model_that_one_process_trains(out):
    one, history = torch.load(out / "train-1" / "0.pt")
    states = [torch.load(out / "train-2" / f"{rank}.pt") for rank in range(2)]
    assert differences(states[0][0], states[1][0]) == 0 and states[0][1] == states[1][1]
    assert 0 < differences(states[0][0], one) < 1e-5  # sums of halves are rounded differently
    assert [entry["loss"] for entry in states[0][1]] == pytest.approx([entry["loss"] for entry in history], rel=1e-6)
    assert torch.equal(one["0.mask_draw"], states[1][0]["0.mask_draw"])


def test_ranks_that_use_different_layers_train_both(out):
    one, *two = (torch.load(out / name) for name in ("routed-1/0.pt", "routed-2/0.pt", "routed-2/1.pt"))
    assert differences(*two) == 0 and differences(one, two[0]) < 1e-5


def test_finetune_gives_the_results_of_one_process(out):
    one, two = (results(out / f"finetune-{count}") for count in (1, 2))
    for first, second in zip(one["cells"], two["cells"], strict=True):
        assert first["errors"] == pytest.approx(second["errors"], abs=0.6)  # two of 360 examples
        assert first["density"] == second["density"] and first["swapped"] == pytest.approx(second["swapped"], abs=1e-3)
        losses = [[entry["loss"] for entry in cell["history"]] for cell in (first, second)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert one["dense"][0]["error"] == pytest.approx(two["dense"][0]["error"], abs=0.6)
    assert {path.name for path in out.glob("finetune-2/*/*.png")} == {"results.png"}


def test_finetune_lm_gives_the_results_of_one_process(out):
    one, two = (results(out / f"finetune_lm-{count}") for count in (1, 2))
    names = [[(row["score"], row["arm"]) for row in found["rows"]] for found in (one, two)]
    errors = [[row["error"] for row in found["rows"]] for found in (one, two)]
    assert names[0] == names[1] and errors[0] == pytest.approx(errors[1], rel=1e-3)
    for path in ("results.json", "tables.md", two["exported"] + "/model.safetensors"):
        assert len([*(out / "finetune_lm-2").glob(f"*/{path}")]) == 1


def test_a_dead_rank_ends_the_run_whose_checkpoint_is_whole(out):
    assert load_tensors(out / "left.pt")["position"]["step"] in (1, 2)
    for rank in range(2):
        resumed, whole = (torch.load(out / name / f"{rank}.pt") for name in ("killed", "train-2"))
        assert differences(resumed[0], whole[0]) == 0 and resumed[1] == whole[1]


def test_finetune_resumes_after_the_death_of_a_rank(out):
    whole, resumed = (contents(out / name) for name in ("finetune-2", "finetune_killed"))
    left = {name for name in resumed if name.endswith(".txt")}  # what the first rank said
    assert resumed.keys() - left == whole.keys()
    assert [name for name in whole if not close(resumed[name], whole[name])] == []


def test_a_rank_that_hangs_is_named(out):
    text = (out / "hung" / "0.txt").read_text().splitlines()[-1]
    assert "RankError" in text and "Ranks 1 failed" in text


def test_a_loss_that_is_not_finite_ends_all_ranks_alike(out):
    texts = [(out / "nan" / f"{rank}.txt").read_text().splitlines()[-1] for rank in range(2)]
    assert texts[0] == texts[1] and "FloatingPointError" in texts[0] and "batch holds" in texts[0]


def test_the_plan_counts_what_ranks_send(out):
    found = json.loads((out / "count" / "count.json").read_text())
    assert len(found) == 6
    for case, (counted, planned) in found.items():
        assert counted.keys() == planned.keys() and min(counted.values()) > 0
        for name, size in counted.items():  # FSDP2 gathers the norms of blocks twice, which the plan counts once
            assert size == pytest.approx(planned[name], rel=0.002 if case.startswith("fsdp") else 1e-12), case


@pytest.mark.parametrize("seconds", ["", "0", "nan", "soon"])
def test_a_wrong_timeout_is_refused(monkeypatch, seconds):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(ranks.TIMEOUT, seconds)
    with pytest.raises(ValueError, match=ranks.TIMEOUT), ranks.joined():
        pass


def test_without_a_launcher_there_is_one_rank(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    tensor = torch.tensor([math.pi])
    with ranks.joined():
        ranks.add_up([tensor])
        assert (ranks.rank(), ranks.count(), ranks.is_first()) == (0, 1, True)
        assert ranks.from_first(lambda: 5) == 5 and ranks.from_all(6) == [6]
    assert tensor.item() == pytest.approx(math.pi)
