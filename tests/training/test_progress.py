"""The progress bar counts what it is told."""

from __future__ import annotations

from stochprune.training import FinetuneConfig, ProgressBar, finetune


def test_counts_steps(masked, loader):
    with ProgressBar("mask") as bar:
        finetune(masked(), loader, FinetuneConfig(epochs=2), callbacks=[bar])
        task = bar._progress.tasks[0]
        assert (task.completed, task.total) == (8, 8)
        bar.begin("next")
        bar.finish(20)
        assert (task.completed, task.description) == (20, "next")
        bar.finish(5)
        assert task.completed == 25
