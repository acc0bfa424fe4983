"""One run: a configuration, the folder named after it, and the files in it.

Everything that can be resumed has this form::

    with open_run(config, run_folder(out, "finetune", config)) as run:  # holds the folder
        checkpoint = run.checkpoint(config.checkpoint_every, model)  # after a kill the same call continues from it
        ...                                                          # the work
        run.write({"history": history}, device)                      # results.json
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stochprune.runs import ranks
from stochprune.runs.checkpoint import Checkpoint
from stochprune.runs.config import digest
from stochprune.runs.digests import fingerprint, structure
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
        folder: None if nothing is written.
        key: a text that must be the same in a checkpoint, besides its start.
    """

    config: DataclassInstance
    folder: Path | None
    key: str

    def checkpoint(
        self, every: int, *start: nn.Module | str, reads: Callable[[], str] | None = None
    ) -> Checkpoint | None:
        """Return the checkpoint, which is written every ``every`` steps; None if nothing is written.

        Args:
            start: the start of the run: models, of which every byte and the types and settings of all modules count,
                and texts, such as digests of data.
            reads: returns that of :class:`stochprune.runs.Checkpoint`; called only if something is written.
        """
        if self.folder is None:
            return None
        parts = (f"{fingerprint(each)} {structure(each)}" if isinstance(each, nn.Module) else each for each in start)
        return Checkpoint(self.folder, self.key, " ".join(filter(None, parts)), every, reads() if reads else "")

    def write(self, found: Mapping[str, Any], device: torch.device | None = None) -> dict[str, Any]:
        """Write ``results.json`` with configuration, versions and results.

        Args:
            found: the results: numbers, texts, lists and mappings by name.
            device: the device of the run, if it matters.

        Returns:
            The content of the file.
        """
        content = {"configuration": dataclasses.asdict(self.config), "versions": versions(device), **found}
        if self.folder is not None and ranks.is_first():
            write_json(self.folder / "results.json", content)
        return content


@contextlib.contextmanager
def open_run(config: DataclassInstance, folder: Path | None, key: str = "") -> Iterator[Run]:
    """Hold the folder of a run while the block runs, see :func:`stochprune.runs.claim`.

    Args:
        config: a dataclass.
        folder: made if missing; with None nothing is written.
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
