"""One run: a configuration, the folder named after it, and what is kept there.

Everything that can be resumed has this form::

    with open_run(config, run_folder(out, "finetune", config)) as run:  # holds the folder
        checkpoint = run.checkpoint(config.checkpoint_every, model)  # the same call goes on from it after a kill
        ...                                                          # the work
        run.write({"history": history}, device)                      # results.json
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stochprune.runs.checkpoint import Checkpoint
from stochprune.runs.config import digest
from stochprune.runs.digests import fingerprint
from stochprune.runs.files import write_json
from stochprune.runs.folder import claim
from stochprune.runs.results import versions

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclasses.dataclass(frozen=True)
class Run:
    """A run whose folder this process holds.

    Attributes:
        config: its configuration, a dataclass.
        folder: None if nothing is kept.
        key: what a checkpoint must have been made under, beside its start.
    """

    config: DataclassInstance
    folder: Path | None
    key: str

    def checkpoint(self, every: int, *start: nn.Module | str) -> Checkpoint | None:
        """Return the checkpoint, written every so many steps; None if nothing is kept.

        Args:
            start: what the run starts from: models, of which every byte counts, and texts, such as digests of data.
        """
        if self.folder is None:
            return None
        parts = (fingerprint(each) if isinstance(each, nn.Module) else each for each in start)
        return Checkpoint(self.folder, self.key, " ".join(filter(None, parts)), every)

    def write(self, found: Mapping[str, Any], device: torch.device | None = None) -> dict[str, Any]:
        """Write ``results.json``: configuration, versions, and what was found.

        Args:
            found: numbers, texts, lists and mappings by name.
            device: on which it was found, if that matters.

        Returns:
            What the file holds.
        """
        content = {"configuration": dataclasses.asdict(self.config), "versions": versions(device), **found}
        if self.folder is not None:
            write_json(self.folder / "results.json", content)
        return content


@contextlib.contextmanager
def open_run(config: DataclassInstance, folder: Path | None, key: str = "") -> Iterator[Run]:
    """Hold the folder of a run while the block runs, see :func:`stochprune.runs.claim`.

    Args:
        config: a dataclass.
        folder: made if missing; None keeps nothing.
        key: see :class:`Run`; by default the digest of the configuration.

    Raises:
        CheckpointError: another process holds the folder.
        OSError: it cannot be made.
    """
    with claim(folder):
        yield Run(config, folder, key or digest(config))


def run_folder(
    out: str | Path, name: str, config: DataclassInstance, exclude: tuple[str, ...] = (), suffix: str = ""
) -> Path:
    """Return ``out/<name>-<digest><suffix>``, the folder of a configuration.

    Args:
        exclude: fields that do not change the folder.
    """
    return Path(out) / f"{name}-{digest(config, exclude)}{suffix}"
