"""The progress bar counts what it is told."""

from __future__ import annotations

from stochprune.runs.progress import ProgressBar
from tests.runs.owners import run_finetune


def test_counts_steps(tmp_path):
    with ProgressBar("mask") as bar:
        run_finetune(tmp_path, callbacks=(bar,))
        task = bar._progress.tasks[0]
        assert (task.completed, task.total) == (6, 6)
        bar.begin("next")
        bar.finish(20)
        assert (task.completed, task.description) == (20, "next")
        bar.finish(5)
        assert task.completed == 25
        bar.show(30, "half")
        assert (task.completed, task.fields["loss"]) == (30, "half")
