"""Cells as jobs of Slurm, through submitit."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from stochprune.extras import extra
from stochprune.studies.executors.engine import Lost, Work, WorkerError

CLUSTERS = ("slurm", "local")


class SlurmEngine:
    """Options: ``partition``, ``account``, ``qos`` and ``constraint`` of Slurm; of a job ``minutes`` (default: 1440),
    ``cpus`` (1), ``gpus`` (0) and ``memory`` in GB (the cluster's default); ``cluster=local``: processes here."""

    def __init__(
        self, folder: Path, workers: int, *, cluster: str = "slurm", minutes: int = 1440, cpus: int = 1, **more: Any
    ) -> None:
        if cluster not in CLUSTERS:
            raise ValueError(f"executor slurm: cluster must be one of {', '.join(CLUSTERS)}, got {cluster!r}")
        with extra("cluster", "executor slurm"):
            import submitit
        self.submitit, self.handles = submitit, list[Any]()
        try:
            self.executor = submitit.AutoExecutor(folder=folder / "jobs", cluster=cluster)
        except RuntimeError as error:
            raise ValueError(f"executor slurm needs the command srun of a cluster ({error})") from error
        given: dict[str, Any] = {"timeout_min": minutes, "cpus_per_task": cpus, "name": "stochprune"}
        if "gpus" in more:
            given["gpus_per_node"] = more.pop("gpus")
        if "memory" in more:
            given["mem_gb"] = more.pop("memory")
        self.executor.update_parameters(**given, **{f"slurm_{name}": value for name, value in more.items()})

    def submit(self, work: Work, *arguments: Any) -> Any:
        self.handles.append(self.executor.submit(work, *arguments))
        return self.handles[-1]

    def ended(self, handle: Any) -> bool:
        return bool(handle.done())

    def result(self, handle: Any) -> Exception | None:
        self.handles.remove(handle)
        core = self.submitit.core.utils
        try:
            return handle.result()
        except core.FailedJobError as error:
            raise WorkerError(f"executor slurm: {error}") from error
        except core.UncompletedJobError as error:
            raise Lost(str(error)) from error

    def close(self) -> None:
        for handle in self.handles:
            with contextlib.suppress(Exception):  # it may have ended
                handle.cancel()
