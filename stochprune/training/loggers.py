"""Callbacks that write the history of a training to files: CSV and TensorBoard."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from stochprune.arguments import checked
from stochprune.extras import extra
from stochprune.runs.files import replacing
from stochprune.runs.folder import make_folder
from stochprune.training.state import State


class CSVLogger:
    """A callback that writes the history to ``mask.csv`` (mask fine-tuning) or ``weights.csv`` (weight training).

    Iterative pruning writes a file for each of its trainings: ``weights-dense.csv``, ``weights-cycle1.csv`` and so on.

    Put it after callbacks that add numbers to the history. The whole file is written after each epoch, so a resumed run
    has each epoch once.

    Args:
        folder: made if missing.
    """

    @checked
    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def on_epoch(self, state: State) -> None:
        make_folder(self.folder)
        columns = list(dict.fromkeys(name for entry in state.history for name in entry))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(state.history)
        with replacing(self.folder / f"{state.name}.csv") as file:
            file.write(text.getvalue().encode())


class TensorBoard:
    """A callback that writes events for TensorBoard: loss and learning rates of each step, the history of each epoch.

    A resumed run replaces the events after its checkpoint. Put it after callbacks that add numbers to the history.

    Args:
        folder: the events are in its folder ``mask`` (mask fine-tuning) or ``weights`` (weight training); those of
            iterative pruning in ``weights-dense``, ``weights-cycle1`` and so on.

    Raises:
        MissingExtraError: the package tensorboard is not installed.
    """

    @checked
    def __init__(self, folder: str | Path) -> None:
        with extra("loops", "TensorBoard"):
            from torch.utils.tensorboard import SummaryWriter
        self.folder = Path(folder)
        self._make: Any = SummaryWriter
        self._writer: Any = None

    def on_start(self, state: State) -> None:
        self._writer = self._make(str(self.folder / state.name), purge_step=state.step + 1)

    def on_step(self, state: State) -> None:
        self._writer.add_scalar("step/loss", state.loss, state.step)
        for number, group in enumerate(state.optimizer.param_groups):
            self._writer.add_scalar(f"lr/{group.get('name', number)}", group["lr"], state.step)

    def on_epoch(self, state: State) -> None:
        for name, value in state.history[-1].items():
            self._writer.add_scalar(f"epoch/{name}", value, state.step)
        self._writer.flush()

    def on_end(self, state: State) -> None:
        self._writer.close()
