"""run_cells: the cells of a study on workers, each once, and again if its worker dies."""

from __future__ import annotations

import collections
import dataclasses
import os
import shutil
import time
from pathlib import Path

from stochprune import report
from stochprune.studies.cells import Job, Task, tasks
from stochprune.studies.executors.engine import Engine, Lost, WorkerError
from stochprune.studies.executors.options import Executor
from stochprune.studies.executors.worker import read_status, work

ATTEMPTS = 3
"""The number of workers that may die with the same cell."""
PAUSE = 0.2
"""Seconds between two looks at the workers."""


def run_cells(executor: Executor, job: Job, folder: Path) -> None:
    """Run the cells of a study that have no result, and show all workers in one table.

    Args:
        folder: of the study; files of the engine and the workers are in its folder ``workers`` while the cells run.

    Raises:
        ValueError: the engine cannot start. Or the error of a cell, such as ``ValueError`` for a mask that empties a
            layer; the cells that run then are stopped.
        WorkerError: three workers died with the same cell, or a worker cannot run or cannot store it.
    """
    job = dataclasses.replace(job, out=job.out.resolve(), data_dir=job.data_dir and job.data_dir.resolve())
    every = tasks(job)
    waiting = [task for task in every if not _stored(task)]
    if not waiting:
        return
    board = folder.resolve() / "workers"
    shutil.rmtree(board, ignore_errors=True)
    board.mkdir(parents=True)
    engine = executor.start(board)
    try:
        with report.WorkerTable(len(every), len(every) - len(waiting)) as table:
            _Pool(engine, executor.workers, job, board).run(waiting, table)
    finally:
        engine.close()
        shutil.rmtree(board, ignore_errors=True)


def _stored(task: Task) -> bool:
    return os.path.lexists(task.folder / "result.json")


class _Pool:
    """The cells that run, by the handle of the engine."""

    def __init__(self, engine: Engine, workers: int, job: Job, board: Path) -> None:
        self.engine, self.workers, self.job, self.board = engine, workers, job, board
        self.running: list[tuple[object, Task]] = []
        self.lost: collections.Counter[Path] = collections.Counter()

    def run(self, tasks: list[Task], table: report.WorkerTable) -> None:
        waiting = collections.deque(tasks)
        while waiting or self.running:
            while waiting and len(self.running) < self.workers:
                task = waiting.popleft()
                self._file(task).unlink(missing_ok=True)
                self.running.append((self.engine.submit(work, self.job, task, self._file(task)), task))
            for handle, task in [each for each in self.running if self.engine.ended(each[0])]:
                self.running.remove((handle, task))
                if not self._finished(handle, task):
                    waiting.append(task)
            rows = [(task.title, *dataclasses.astuple(read_status(self._file(task)))) for _, task in self.running]
            done = len(tasks) - len(waiting) - len(self.running)
            table.show(rows, done=done, again=sum(self.lost.values()))
            time.sleep(PAUSE)

    def _file(self, task: Task) -> Path:
        return self.board / f"{task.folder.parent.name}-{task.folder.name}.json"

    def _finished(self, handle: object, task: Task) -> bool:
        """Return True if a cell that ended is stored, and False if its worker died."""
        try:
            error = self.engine.result(handle)
        except Lost as lost:
            self.lost[task.folder] += 1
            if self.lost[task.folder] == ATTEMPTS:
                raise WorkerError(f"{task.title}: {ATTEMPTS} workers died with this cell; the last: {lost}") from lost
            return False
        if error is not None:
            raise error
        if not _stored(task):
            raise WorkerError(
                f"{task.title}: its worker stored no result in {task.folder}: workers must share this folder"
            )
        return True
