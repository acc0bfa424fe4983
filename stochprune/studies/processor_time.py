"""ProcessorTime: the processor seconds of a training, over interruptions."""

from __future__ import annotations

import time
from typing import Any

from stochprune.training.state import State


class ProcessorTime:
    """Adds up the processor seconds of this process, of all its threads, inside ``with`` blocks.

    As a callback of trainings it stores their seconds in their checkpoints. So a resumed training counts what was done
    before the checkpoint, and a finished one that is not repeated counts too.

    Attributes:
        seconds: up to the end of the last block.
    """

    def __init__(self) -> None:
        self.seconds = self._entered = self._before = 0.0

    def __enter__(self) -> ProcessorTime:
        self._entered = time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = self._now()

    def _now(self) -> float:
        return self.seconds + time.process_time() - self._entered

    def setup(self, state: State) -> None:
        self._before = self._now()

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._now() - self._before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds += float(state["seconds"])
