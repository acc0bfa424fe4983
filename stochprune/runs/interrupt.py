"""Signals that end a run."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from stochprune.runs.folder import held


class Stopped(BaseException):
    """A signal told the program to end.

    Attributes:
        signal: the signal.
        folder: the outermost folder that the process held at that time, if any.
    """

    def __init__(self, number: int, folder: Path | None) -> None:
        self.signal, self.folder = signal.Signals(number), folder
        super().__init__(f"stopped by {self.signal.name}")


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise :class:`Stopped` while the block runs; a second one ends the process immediately.

    A signal that the process ignores, for example because of ``nohup``, stays ignored. Threads other than the main
    thread receive no signals, so nothing changes for them.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Stopped(number, held[0] if held else None)

    former = {}
    if threading.current_thread() is threading.main_thread():
        signals = (signal.SIGINT, signal.SIGTERM)
        former = {number: signal.getsignal(number) for number in signals}
        former = {number: handler for number, handler in former.items() if handler is not signal.SIG_IGN}
    for number in former:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
