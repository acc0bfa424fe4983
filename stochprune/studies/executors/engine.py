"""The protocol of an engine: it starts work in workers for an executor, and says what became of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

Work = Callable[..., Exception | None]
"""A function that returns the error that ended it, or None. So an error that is raised is one of the engine."""


class WorkerError(RuntimeError):
    """Workers die again and again, or cannot run a cell."""


class Lost(Exception):
    """The worker died before its work ended."""


class Engine(Protocol):
    """Starts work. Handles are what ``submit`` returns."""

    def submit(self, work: Work, *arguments: Any) -> Any:
        """Start the work in a worker as soon as there is one; return a handle."""

    def ended(self, handle: Any) -> bool:
        """Return True if the work has ended or its worker has died."""

    def result(self, handle: Any) -> Exception | None:
        """Return what work that has ended returned.

        Raises:
            Lost: its worker died.
            WorkerError: the worker could not run it.
        """

    def close(self) -> None:
        """Stop all workers."""
