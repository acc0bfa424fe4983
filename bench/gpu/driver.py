"""Run the steps in worker processes. A worker that crashes or hangs does not stop the driver.

A worker that dies, or takes too long for a case, is replaced; the new one continues with the next case. The driver does
not import torch, so a broken GPU cannot affect it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from bench.gpu.job import REPLACE
from bench.gpu.journal import Journal, Row, say
from bench.gpu.steps import Step

ROOT = Path(__file__).parents[2]
STARTS = 2  # number of workers in a row that may end before they finish a case
TAIL = 3000  # characters at the end of the log that a row holds
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONFAULTHANDLER": "1",  # a crash prints its Python traceback to the log
    "PYTHONHASHSEED": "0",  # all lanes of a step list its cases in the same order
    "PYTHONUNBUFFERED": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no process pool to compile one kernel
}


class Lane:
    """Runs one worker after the other, until all cases of its share are done or the time of the step is over."""

    def __init__(self, step: Step, number: int, journal: Journal, deadline: Callable[[], float]) -> None:
        self.step, self.number, self.journal, self.deadline = step, number, journal, deadline
        self.log: Path | None = None
        self.plan: list[str] | None = None  # None until a worker has listed its cases
        self.done: list[str] = []
        self.failed = self.restarts = 0
        self.unusable: str | None = None
        self._case: str | None = None
        self._since = 0.0
        self._log_start = 0

    def run(self) -> None:
        """Run all cases of the lane."""
        idle = 0
        while self.unusable is None and time.monotonic() < self.deadline():
            before = len(self.done)
            verdict = self._worker()
            if verdict is None:
                return
            if self.plan is not None and not set(self.plan) - set(self.done):
                return
            idle = 0 if len(self.done) > before else idle + 1
            if idle == STARTS:
                self._fail("(start)", verdict)
                return
            self.restarts += 1

    def _worker(self) -> str | None:
        """Run one worker to its end. Return None if all cases are done, otherwise the reason why it ended."""
        self._case, self._since = None, time.monotonic()
        self.log = self.journal.log()  # chosen again, since a disk may be full by now
        with self._output() as output:
            self._log_start = output.tell()
            process, pipe = self._start(output)
        try:
            late = self._listen(process, pipe)
        finally:
            os.close(pipe)
            stuck = not _kill(process)
        if late:
            verdict = late + (", and it did not die" if stuck else "")
        elif process.returncode == REPLACE:
            return "replaced"
        elif process.returncode == 0 and self._case is None:
            return None
        else:
            verdict = f"the process ended by {_status(process.returncode)}"
        if self._case is not None:
            case, self._case = self._case, None
            self._fail(case, verdict)
            self.done.append(case)
        return verdict

    def _start(self, output: IO[bytes]) -> tuple[subprocess.Popen[bytes], int]:
        ours, theirs = os.pipe()
        job = {"step": self.step.name, "lane": self.number, "lanes": self.step.lanes, "done": self.done, "pipe": theirs}
        journal = {"run": self.journal.run, "folders": [str(folder) for folder in self.journal.folders]}
        memory = os.memfd_create("job")
        os.write(memory, json.dumps({**job, **journal}).encode())
        os.lseek(memory, 0, os.SEEK_SET)
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "bench.gpu.worker", self.step.module],
                cwd=ROOT,
                stdin=memory,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs],
                start_new_session=True,
                env={**os.environ, **ENVIRONMENT},
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(memory)
            os.close(theirs)
        return process, ours

    def _listen(self, process: subprocess.Popen[bytes], pipe: int) -> str | None:
        """Read the worker's events until it ends (return None), or until its time is over (return the reason)."""
        rest = b""
        while True:
            now = time.monotonic()
            if now >= self.deadline():
                return "the step's time was over"
            if now - self._since >= self.step.case_seconds:
                return f"nothing after {self.step.case_seconds:g} s"
            if select.select([pipe], [], [], 0.1)[0]:
                data = os.read(pipe, 1 << 16)
                if not data:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(10)
                    return None
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))
            elif process.poll() is not None:
                return None

    def _take(self, event: dict[str, Any]) -> None:
        self._since = time.monotonic()
        if "plan" in event:
            self.plan = event["plan"]
        elif "begin" in event:
            self._case = event["begin"]
        elif "end" in event:
            self._case = None
            self.done.append(event["end"])
            self.failed += event["row"]["ok"] is False
            if event["row"]["ok"] is False or not self.step.quiet:
                _show(event["row"])
        else:
            self.unusable = event["unusable"]

    def _fail(self, case: str, why: str) -> None:
        row = {"step": self.step.name, "case": case, "ok": False, "error": why, "log": self._tail()}
        self.failed += 1
        self.journal.write(row)
        _show(row)

    def _output(self) -> IO[bytes]:
        return (self.log or Path(os.devnull)).open("ab")

    def _tail(self) -> str:
        if self.log is None:
            return ""
        with self.log.open("rb") as file:
            file.seek(max(self._log_start, os.fstat(file.fileno()).st_size - TAIL))
            return file.read().decode(errors="replace")


def _kill(process: subprocess.Popen[bytes]) -> bool:
    """Kill the worker and its child processes. Return True if it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # the GPU's driver may hold a process for ever
        process.wait(10)
        return True
    return False


def _status(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _show(row: Row) -> None:
    """Print one line of a case."""
    if row["ok"] is False:
        text = "FAILED: " + (str(row["error"]).strip().splitlines() or [""])[-1]
    elif row["ok"] is None:
        text = f"skipped: {row['skipped']}"
    else:
        text = json.dumps(row.get("found"), default=str)
    say(f"{row['step']:>9}  {row['case']}  {text[:200]}")


def run_step(step: Step, journal: Journal, stopped: Callable[[], bool], end: float) -> tuple[Row, str | None]:
    """Run a step, at most until ``end``, and write its row with the numbers of cases that were done and left.

    Returns:
        The row; and the reason if no step can run on this machine, otherwise None.
    """
    start = time.monotonic()

    def deadline() -> float:
        return 0.0 if stopped() else min(start + step.seconds, end)

    lanes = [Lane(step, number, journal, deadline) for number in range(step.lanes)]
    with ThreadPoolExecutor(len(lanes)) as threads:
        ends = [threads.submit(lane.run) for lane in lanes]
    errors = [repr(error) for error in (end.exception() for end in ends) if error is not None]
    left = [case for lane in lanes for case in lane.plan or () if case not in set(lane.done)]
    failed = sum(lane.failed for lane in lanes) + len(errors)
    complete = not left and all(lane.plan is not None for lane in lanes)
    row: Row = {
        "step": step.name,
        "case": "(step)",
        "ok": complete and not failed,
        "seconds": round(time.monotonic() - start, 1),
        "done": sum(len(lane.done) for lane in lanes),
        "failed": failed,
        "restarts": sum(lane.restarts for lane in lanes),
        "complete": complete,
        "left": len(left),
        "first_left": left[:50],
        "errors": errors,
    }
    journal.write(row)
    return row, next((lane.unusable for lane in lanes if lane.unusable), None)


def run(steps: Sequence[Step], journal: Journal, stopped: Callable[[], bool] = lambda: False) -> int:
    """Run the steps until ``stopped``. Return 0 if all cases succeeded, 1 if not, 2 if no step can run here."""
    status = 0
    end = time.monotonic() + sum(step.seconds for step in steps)  # holds also if a worker takes long to end
    for step in steps:
        row, unusable = run_step(step, journal, stopped, end)
        counts = f"{row['done']} done, {row['failed']} failed, {row['left']} left"
        say(f"{step.name:>9}  {counts}, {row['seconds']} s")
        if unusable:
            say(unusable, sys.stderr)
            if not any(done["ok"] for done in journal.rows()):
                return 2
            row["ok"] = False  # the GPU was there before, so the other steps may find it again
        status |= not row["ok"]
    return status
