"""The table of a study's workers, on the standard error while they run."""

from __future__ import annotations

from collections.abc import Sequence

from stochprune.extras import extra
from stochprune.report.style import terminal_table

Line = tuple[str, str, str, int, str]
"""The cell, its worker, what it trains, its steps so far, and the last loss."""


class WorkerTable:
    """Shows all workers in one table if the standard error is a terminal, else one line for each change.

    Args:
        cells: the number of cells of the study.
        stored: the number of those that were stored before.
    """

    def __init__(self, cells: int, stored: int) -> None:
        with extra("studies", "WorkerTable"):
            from rich.console import Console
            from rich.live import Live
        self.cells, self.stored, self.said = cells, stored, ""
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> WorkerTable:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, rows: Sequence[Line], done: int, again: int) -> None:
        """Show the cells that run, and how many are done; ``again`` counts cells whose worker died."""
        text = f"{self.stored + done} of {self.cells} cells are done, {len(rows)} run"
        text += f", {again} ran again because their worker died" if again else ""
        if not self._console.is_terminal:
            if text != self.said:
                self._console.print(text, highlight=False, soft_wrap=True)
            self.said = text
            return
        made = terminal_table(text, None)
        for column in ("cell", "worker", "part"):
            made.add_column(column)
        for column in ("steps", "loss"):
            made.add_column(column, justify="right")
        for row in rows:
            made.add_row(*map(str, row))
        self._live.update(made, refresh=True)
