"""A result that is kept is taken for its own configuration alone, and only if it is whole."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal

import pytest
import torch

from stochprune import data, studies
from stochprune.runs import CheckpointError, load_tensors, read_json, save_tensors, store, write_json
from stochprune.runs.store import remember, say_reused
from tests.runs.owners import run_finetune_study, run_initialisation

CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Found:
    error: float | None
    rows: list[int]


RESULT = Found(0.5, [1])


def ask(folder, configuration=None, work=lambda folder: RESULT):
    return remember(folder, configuration or {"lr": 0.1, "sizes": (1, 2)}, CPU, work, Found).result


def test_work_is_done_once(tmp_path):
    assert ask(tmp_path) == RESULT
    assert ask(tmp_path, work=lambda folder: pytest.fail("done again")) == RESULT


@pytest.mark.parametrize("other", [{"lr": 0.2, "sizes": (1, 2)}, {"lr": 0.1}, {"lr": 0.1, "sizes": (1, 2), "x": None}])
def test_the_result_of_another_configuration_is_refused(tmp_path, other):
    ask(tmp_path)
    with pytest.raises(CheckpointError, match=r"result\.json .*another configuration"):
        ask(tmp_path, other)


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", "3", '{"result": {}}'])
def test_other_json_is_not_taken_as_done(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"result\.json"):
        ask(tmp_path)
    assert (tmp_path / "result.json").read_text() == text


@pytest.mark.parametrize(
    "change",
    [
        {"result": None},
        {"result": {}},
        {"result": {"error": 0.5}},
        {"result": {"error": "0.5", "rows": []}},
        {"result": {"error": True, "rows": []}},
        {"configuration": []},
        {"seconds": None},
        {"seconds": True},
        {"versions": "1"},
    ],
)
def test_keys_and_kinds_are_checked(tmp_path, change):
    """The digests of these files are right, as if another version of this program had written them."""
    ask(tmp_path)
    content = read_json(tmp_path / "result.json", "result")
    write_json(tmp_path / "result.json", {**content, **change})
    with pytest.raises(CheckpointError, match=r"result\.json"):
        ask(tmp_path)


def test_checkpoints_go_after_the_result_is_on_disk(tmp_path, monkeypatch):
    seen = []
    original = shutil.rmtree
    monkeypatch.setattr(
        shutil, "rmtree", lambda *a, **o: (seen.append((tmp_path / "result.json").exists()), original(*a, **o))
    )

    def work(folder):
        (folder / "checkpoints").mkdir()
        return RESULT

    ask(tmp_path, work=work)
    assert seen == [True] and not (tmp_path / "checkpoints").exists()


def test_two_processes_share_a_cell(tmp_path):
    """One works, the other waits for the result and takes it."""
    receive, send = os.pipe()

    def slow(folder):
        os.write(send, b"x")
        signal.sigtimedwait([], 0.3)
        return RESULT

    if not (pid := os.fork()):
        ask(tmp_path, work=slow)
        os._exit(0)
    os.read(receive, 1)
    assert ask(tmp_path, work=lambda folder: pytest.fail("done twice")) == RESULT
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("run", [run_initialisation, run_finetune_study])
def test_results_of_another_version_are_reused_and_named(tmp_path, capsys, run):
    first = run(tmp_path)
    assert capsys.readouterr().err == ""
    path = sorted(tmp_path.rglob("result.json"))[0]
    content = read_json(path, "result")
    write_json(path, {**content, "versions": {**content["versions"], "stochprune": "0.0.7"}})
    assert run(tmp_path) == first
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "stochprune 0.0.7" in said and said.startswith("1 of ")


def test_all_that_differs_is_named_once(tmp_path, capsys):
    kept = remember(tmp_path, {}, CPU, lambda folder: RESULT, Found)
    here = {**kept.versions, "device": "a GPU", "torch": "9.9"}
    others = [dataclasses.replace(kept, versions={**kept.versions, "torch": torch}) for torch in ("1.1", "1.2", "1.1")]
    say_reused([*others, dataclasses.replace(kept, versions=here)], here)
    said = capsys.readouterr().err
    assert said.startswith("3 of 4 ") and "torch 1.1 and 1.2 (here 9.9)" in said and "device cpu (here a GPU)" in said
    assert "python" not in said and said.count("\n") == 1


@pytest.mark.parametrize("run", [run_initialisation, run_finetune_study])
def test_a_result_under_the_name_of_another_is_refused(tmp_path, run):
    """Through a study: a cell's folder under the name of another cell."""
    run(tmp_path)
    cells = sorted(path.parent for path in tmp_path.rglob("result.json"))
    content = read_json(cells[-1] / "result.json", "result")
    content["configuration"] |= {"sparsity": 0.5}
    write_json(cells[-1] / "result.json", content)
    with pytest.raises(CheckpointError, match=r"kept\.pt|result\.json"):
        run(tmp_path)


def test_kept_weights_of_another_cell_are_refused(tmp_path):
    run_initialisation(tmp_path)
    first, second = sorted(tmp_path.rglob("kept.pt"))[:2]
    shutil.copy(first, second)
    with pytest.raises(CheckpointError, match=r"kept\.pt .*another cell"):
        run_initialisation(tmp_path)


def test_kept_weights_of_other_data_are_refused(tmp_path):
    """The same cell of a run on files of the same name: it would give other distances."""
    run_initialisation(tmp_path)
    for path in tmp_path.rglob("kept.pt"):
        save_tensors(path, load_tensors(path) | {"examples": "0" * 64})
    with pytest.raises(CheckpointError, match=r"kept\.pt .*other data"):
        run_initialisation(tmp_path)


def test_sparsities_that_print_the_same_have_separate_folders(tmp_path):
    plan = studies.StudyConfig(
        scores=("magnitude",), sparsities=(0.9, 0.90000001), seeds=1, dense_epochs=1, retrain_epochs=0, batch_size=512
    )
    config = dataclasses.replace(plan, finetune=dataclasses.replace(plan.finetune, epochs=0), draws=1)
    folder, _ = studies.run_study(config, out=tmp_path)
    assert len(list(folder.glob("magnitude-*/result.json"))) == 2


@pytest.mark.parametrize("kept", ["result.json", "checkpoint.pt"])
@pytest.mark.parametrize("run", [run_initialisation, run_finetune_study])
def test_what_is_kept_of_other_examples_under_the_same_name_is_refused(tmp_path, monkeypatch, run, kept):
    """Files of one name in another folder: one label differs."""
    if kept == "checkpoint.pt":  # the run was stopped while it trained
        with monkeypatch.context() as patched:
            patched.setattr(store, "write_json", lambda *_: pytest.exit("stopped"))
            with pytest.raises(pytest.exit.Exception):
                run(tmp_path)
    else:
        run(tmp_path)
    assert list(tmp_path.rglob(kept))
    digits = data.load("digits")
    labels = digits.train_y.clone()
    labels[0] = (labels[0] + 1) % 10
    monkeypatch.setattr(data, "load", lambda *_, **__: dataclasses.replace(digits, train_y=labels))
    with pytest.raises(CheckpointError, match=r"\bexamples\b"):
        run(tmp_path)
