"""A progress bar, which is also a callback of the trainings."""

from __future__ import annotations

from typing import Protocol

from stochprune.arguments import checked
from stochprune.extras import extra
from stochprune.runs import ranks


class Training(Protocol):
    """The attributes of a training that the bar reads."""

    epochs: int
    steps_per_epoch: int | None
    loss: float


class ProgressBar:
    """Shows steps, loss and the time left on the standard error, if that is a terminal and the process the first rank::

        with ProgressBar("fine-tuning") as bar:
            stochprune.finetune(model, loader, config, callbacks=[bar])

    Args:
        title: text before the bar; :meth:`begin` changes it.
        total: number of steps of all trainings that use the bar; by default that of the first training.
    """

    @checked
    def __init__(self, title: str, total: int | None = None) -> None:
        with extra("studies", "ProgressBar"):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console, loss = Console(stderr=True), TextColumn("{task.fields[loss]}")
        shown = console.is_terminal and ranks.is_first()
        self._progress = Progress(*columns, loss, console=console, disable=not shown)
        self._finished = 0
        self._task = self._progress.add_task(title, total=total, loss="")

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def expect(self, total: int) -> None:
        """Set the number of steps of all trainings to come."""
        self._progress.update(self._task, total=total)

    def begin(self, title: str) -> None:
        """Show another title."""
        self._progress.update(self._task, description=title, loss="")

    def finish(self, steps: int) -> None:
        """Count ``steps`` as done since the last call, including those that were already in a checkpoint."""
        self._finished += steps
        self._progress.update(self._task, completed=self._finished)

    def show(self, done: int, text: str) -> None:
        """Show that ``done`` steps are finished, with a text."""
        self._progress.update(self._task, completed=done, loss=text)

    def on_step(self, state: Training) -> None:
        if self._progress.tasks[0].total is None and state.steps_per_epoch is not None:
            self._progress.update(self._task, total=state.epochs * state.steps_per_epoch)
        self._progress.update(self._task, advance=1, loss=f"loss {state.loss:.4g}")
