"""Studies on workers: each cell once, those of killed workers again, and the results of one process."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
import traceback

import pytest
import torch
from typer.testing import CliRunner

from stochprune import studies
from stochprune.cli import app
from stochprune.extras import MissingExtraError
from stochprune.studies import executors
from stochprune.studies.executors import engine, options, worker
from tests.runs.owners import STUDY
from tests.runs.test_killed import contents

TEXT = STUDY.replace("epochs: 2", "epochs: 1")
METHODS = """
title: Two methods
job: methods
data: [digits]
models: [lenet_300_100]
seeds: 2
grid:
  - arms: {one-shot: {method: one_shot, retrain_epochs: 1}, rigl: {method: rigl, every: 2}}
    sparsities: [0.9]
settings: {epochs: 1, batch_size: 512, dense: {epochs: 1, checkpoint_every: 2}}
"""
FINETUNE = """
title: Fine-tuning
job: finetune
data: [digits]
models: [lenet_300_100]
seeds: 1
grid: [{scores: [magnitude, random], sparsities: [0.9]}]
settings: {dense_epochs: 1, retrain_epochs: 1, batch_size: 512, draws: 2, finetune: {epochs: 1}}
"""


class Forks:
    """An engine whose workers are forks. The first ``kill`` of them are killed before they store a result.

    Attributes:
        begun: the cells that were started, in their order.
        most: the largest number of workers at the same time.
    """

    kill, begun, most = 0, [], 0

    def __init__(self, folder, workers):
        self.folder, self.alive = folder, {}

    def submit(self, work, job, task, status):
        kind = type(self)
        kind.begun.append(task.title)
        killed = kind.kill > 0
        kind.kill -= killed
        if not (pid := os.fork()):
            try:
                if killed:
                    os.replace = die_before_the_result
                found = work(*pickle.loads(pickle.dumps((job, task, status))))
                (self.folder / str(os.getpid())).write_bytes(pickle.dumps(found))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        self.alive[pid] = None
        kind.most = max(kind.most, sum(status is None for status in self.alive.values()))
        return pid

    def ended(self, pid):
        if self.alive[pid] is None:
            done, status = os.waitpid(pid, os.WNOHANG)
            self.alive[pid] = status if done else None
        return self.alive[pid] is not None

    def result(self, pid):
        if self.alive[pid]:
            raise engine.Lost(f"fork {pid}")
        return pickle.loads((self.folder / str(pid)).read_bytes())

    def close(self):
        for pid in [pid for pid in self.alive if not self.ended(pid)]:
            os.kill(pid, signal.SIGKILL)


def die_before_the_result(source, target, replace=os.replace):
    if str(target).endswith("result.json"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)


@pytest.fixture
def forks(monkeypatch):
    monkeypatch.setitem(options.ENGINES, "forks", Forks)
    for name, value in {"kill": 0, "begun": [], "most": 0}.items():
        monkeypatch.setattr(Forks, name, value)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a fork has none of its parent's threads, and would wait for them
    yield executors.Executor("forks", 2, {})
    torch.set_num_threads(threads)


def plan(folder, text):
    (folder / "mine.yaml").write_text(text)
    return studies.load(folder / "mine.yaml")


def files(out):
    """Every file of a run without times; pictures and the tables of processor seconds are left out."""
    timed = any("seconds" in path.read_text() for path in out.rglob("*.csv"))
    left = (".png", ".csv", ".md") if timed else (".png",)
    return {name: value for name, value in contents(out).items() if not name.endswith(left)}


@pytest.mark.parametrize("text", [TEXT, METHODS, FINETUNE])
def test_workers_give_the_files_of_one_process_though_one_is_killed(tmp_path, forks, text, capfd):
    made = plan(tmp_path, text)
    folder, found = studies.run(made, out=tmp_path / "one")
    Forks.kill = 1
    other, again = studies.run(made, out=tmp_path / "two", executor=forks)
    assert other.name == folder.name and len(found["rows"]) == len(again["rows"])
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
    cells = sorted(set(Forks.begun))
    assert len(Forks.begun) == len(cells) + 1 and Forks.most == 2  # one cell twice, each other once
    said = capfd.readouterr().err
    assert f"{len(cells)} of {len(cells)} cells are done" in said and "1 ran again" in said
    studies.run(made, out=tmp_path / "two", executor=forks)
    assert len(Forks.begun) == len(cells) + 1  # nothing is left to do


def test_a_cell_that_kills_its_workers_ends_the_study(tmp_path, forks):
    Forks.kill = 100
    with pytest.raises(executors.WorkerError, match="fork"):
        studies.run(plan(tmp_path, TEXT), out=tmp_path, executor=forks)
    assert 3 <= len(Forks.begun) <= 9


def test_the_error_of_a_cell_is_raised(tmp_path, forks, monkeypatch):
    def broken(*arguments):
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr(worker, "run_task", broken)
    with pytest.raises(FloatingPointError, match="nan"):
        studies.run(plan(tmp_path, TEXT), out=tmp_path, executor=forks)
    monkeypatch.setattr(worker, "run_task", lambda *_: None)
    with pytest.raises(executors.WorkerError, match="stored no result"):
        studies.run(plan(tmp_path, TEXT), out=tmp_path, executor=forks)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("dask",), "dask"),
        (("ray", 0), "workers"),
        (("local", 2, ["cpus=1"]), "cpus=1"),
        (("ray", 2, ["nodes=1"]), "nodes=1"),
        (("ray", 2, ["gpus"]), "gpus"),
        (("ray", 2, ["gpus=1", "gpus=1"]), "gpus=1"),
        (("ray", 2, ["gpus=-1"]), "gpus=-1"),
        (("ray", 2, ["gpus=nan"]), "gpus=nan"),
        (("slurm", 2, ["minutes=1.5"]), "minutes=1.5"),
        (("slurm", 2, ["cpus=0"]), "cpus=0"),
        (("slurm", 2, ["partition="]), "partition="),
    ],
)
def test_bad_options_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        executors.choose(*arguments)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    ended = CliRunner().invoke(app, ["study", "immune", "--executor", "cloud", "--out", str(tmp_path)])
    assert ended.exit_code == 1 and "cloud" in ended.stderr and len(ended.stderr.splitlines()) == 1


def test_slurm_without_a_cluster_and_an_unknown_one_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    for given in ({}, {"cluster": "moon"}):
        with pytest.raises(ValueError, match=r"srun|moon"):
            executors.Executor("slurm", 1, given).start(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("package", "name", "given"), [("submitit", "slurm", ["cluster=local"]), ("ray", "ray", [])])
def test_engines_run_work_and_see_that_a_worker_dies(tmp_path, monkeypatch, package, name, given):
    pytest.importorskip(package)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    started = executors.choose(name, 1, given).start(tmp_path / "board")
    try:
        handles = [started.submit(lambda: os._exit(9)), started.submit(lambda: ValueError("seven"))]
        while not all(started.ended(handle) for handle in handles):
            time.sleep(0.1)
        with pytest.raises(engine.Lost):
            started.result(handles[0])
        assert str(started.result(handles[1])) == "seven"
    finally:
        started.close()


@pytest.mark.slow
@pytest.mark.parametrize(("package", "name", "given"), [("submitit", "slurm", ["cluster=local"]), ("ray", "ray", [])])
def test_engines_give_the_files_of_one_process(tmp_path, monkeypatch, package, name, given):
    pytest.importorskip(package)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = plan(tmp_path, TEXT)
    studies.run(made, out=tmp_path / "one")
    studies.run(made, out=tmp_path / "two", executor=executors.choose(name, 2, given))
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert one.keys() == two.keys() and [path for path in one if one[path] != two[path]] == []


@pytest.mark.parametrize("package, name", [("submitit", "slurm"), ("ray", "ray")])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package}.*stochprune\[cluster\]"):
        executors.choose(name, 1).start(tmp_path)
