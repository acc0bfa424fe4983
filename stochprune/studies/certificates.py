"""Certificates over seeds and settings: each cell is a run of ``stochprune certify`` in a folder of its own."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import torch

from stochprune.pac_bayes import RunConfig, run_certify
from stochprune.pac_bayes.run import CertificateRow
from stochprune.runs.config import digest
from stochprune.runs.store import Kept, remember
from stochprune.studies.rows import RiskRow

OWN = ("data", "model", "seed")
"""Fields of a run's configuration that the study sets."""
DECIDED = {"objective": "objectives"}
"""Fields of the self-bounded learning without effect in a run of certify, and the field that decides instead."""


@dataclasses.dataclass(frozen=True)
class CertificateArm:
    """Settings of ``stochprune certify``.

    Attributes:
        name: in the tables.
        options: options of the command with underscores, such as ``prior_fraction``; lists are texts with commas.

    Raises:
        ValueError: an unknown option, one that the study sets, or a value outside its range.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.name == "dense":
            raise ValueError("an arm cannot have the name 'dense': the tables give it to networks that are not pruned")
        if own := sorted(set(OWN) & {key for key, _ in self.options}):
            raise ValueError(f"arm {self.name!r}: the study sets {own[0]}")
        for field in sorted(set(DECIDED) & {key for key, _ in self.options}):
            raise ValueError(f"arm {self.name!r}: {field} has no effect, because {DECIDED[field]} decide: leave it out")
        self.config(RunConfig())

    def config(self, settings: RunConfig) -> RunConfig:
        """Return the settings with the options of the arm."""
        left = dict(self.options)
        found: RunConfig = _replaced(settings, left)
        if left:
            raise ValueError(f"arm {self.name!r}: unknown option {next(iter(left))!r}")
        return found


@dataclasses.dataclass(frozen=True)
class CertificateBlock:
    """Arms; each runs with every model and seed."""

    arms: tuple[CertificateArm, ...]

    def __post_init__(self) -> None:
        if not self.arms:
            raise ValueError("arms must name at least one")

    def __len__(self) -> int:
        return len(self.arms)


@dataclasses.dataclass(frozen=True)
class CertificateCell:
    """One run, of one arm; data, model and seed are in its configuration."""

    arm: str
    config: RunConfig

    @property
    def model(self) -> str:
        return self.config.model

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def folder(self) -> str:
        """The name of the cell's folder, which depends on its whole configuration."""
        return digest(self.config)

    @property
    def title(self) -> str:
        """The line that says which cell runs."""
        return f"{self.config.model} {self.arm} seed {self.config.seed}"


@dataclasses.dataclass(frozen=True)
class Certified:
    """The rows of a run, and the processor seconds of the call that finished it."""

    rows: list[CertificateRow]
    seconds: float


def run_cell(
    cell: CertificateCell, examples: str, data_dir: Path | None, root: Path, device: torch.device
) -> Kept[Certified]:
    """Return the certificates of a cell, from its folder in ``root`` if they are there.

    The run's own folder, with prior, posteriors and certificates, lies in that of the cell.

    Args:
        examples: digest of the data.
    """

    def work(folder: Path) -> Certified:
        print(cell.title, file=sys.stderr)
        begun = time.process_time()
        _, results = run_certify(cell.config, data_dir=data_dir, out=folder, device=device)
        return Certified([CertificateRow(**row) for row in results["rows"]], round(time.process_time() - begun, 1))

    configuration = {**dataclasses.asdict(cell.config), "examples": examples}
    return remember(root / cell.folder, configuration, device, work, Certified)


def risk_rows(cell: CertificateCell, result: Certified) -> list[RiskRow]:
    """Return a line for each certificate of a cell, in per cent."""
    config = cell.config
    return [
        RiskRow(
            data=config.data,
            model=config.model,
            score=cell.arm,
            sparsity=config.prior.sparsity,
            arm=f"{row.family}, {row.objective}",
            seed=config.seed,
            error=100 * row.test_error,
            bound=100 * row.bound,
            mean_loss=100 * row.mean_loss,
            kl=row.total_kl,
            run_seconds=result.seconds,
        )
        for row in result.rows
    ]


def _replaced(config: Any, options: dict[str, Any]) -> Any:
    """Return a configuration with other values, also in its parts; what is used is taken out of ``options``."""
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = _replaced(value, options)
        elif field.name in options:
            given = options.pop(field.name)
            if isinstance(value, tuple):
                given = tuple(str(given).split(","))
            elif isinstance(value, float) and type(given) is int:
                given = float(given)  # so that 0 and 0.0 have one digest, as on the command line
            changes[field.name] = given
    return dataclasses.replace(config, **changes)
