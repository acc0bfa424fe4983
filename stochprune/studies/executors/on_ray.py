"""Cells as tasks of Ray."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from stochprune.extras import extra
from stochprune.studies.executors.engine import Lost, Work, WorkerError


class RayEngine:
    """Options: ``address`` of a cluster that runs (default: RAY_ADDRESS, else this machine), ``cpus`` and ``gpus`` of a
    worker (default: 1 and 0)."""

    def __init__(self, folder: Path, workers: int, *, address: str = "", cpus: float = 1.0, gpus: float = 0.0) -> None:
        with extra("cluster", "executor ray"):
            import ray
        self.ray = ray
        address = address or os.environ.get("RAY_ADDRESS", "")
        own: dict[str, Any] = {"num_cpus": max(1, round(workers * cpus)), "include_dashboard": False}
        try:
            ray.init(**{"address": address} if address else own, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            raise ValueError(f"executor ray cannot start with address {address!r}: {error}") from error
        self.remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, max_calls=1)

    def submit(self, work: Work, *arguments: Any) -> Any:
        return self.remote(work).remote(*arguments)

    def ended(self, handle: Any) -> bool:
        return bool(self.ray.wait([handle], timeout=0)[0])

    def result(self, handle: Any) -> Exception | None:
        errors = self.ray.exceptions
        try:
            return self.ray.get(handle)
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
            raise Lost(str(error)) from error
        except errors.RayError as error:
            raise WorkerError(f"executor ray: {error}") from error

    def close(self) -> None:
        self.ray.shutdown()
