"""Checkpoints, which are refused if they are damaged or belong to another run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from stochprune.runs import ranks
from stochprune.runs.files import CheckpointError, load_tensors, save_tensors
from stochprune.runs.folder import make_folder

FORMAT = "stochprune-checkpoint-2"
DATA = "data or loss"


class Checkpoint:
    """The checkpoint file of one run. Of several ranks the first one writes and reads it.

    Args:
        folder: the folder of ``checkpoint.pt``; made if missing.
        config: the digest of the run's configuration.
        start: the fingerprint of the model before the first step.
        every: number of optimiser steps between checkpoints.
        reads: a text that differs for other data or another loss, as far as texts tell; "" if it is not known.
    """

    def __init__(self, folder: Path, config: str, start: str, every: int, reads: str = "") -> None:
        ranks.from_first(lambda: make_folder(folder))
        self.path = folder / "checkpoint.pt"
        self.identity = {"configuration": config, "model, starting weights or examples": start, DATA: reads}
        self.every = every

    def save(self, payload: dict[str, Any]) -> None:
        """Replace the checkpoint; the old one stays until the new one is complete on disk."""
        if ranks.is_first():
            save_tensors(self.path, {"format": FORMAT, "identity": self.identity, **payload})

    def load(self) -> dict[str, Any] | None:
        """Return the last payload saved, or None if there is none.

        Raises:
            CheckpointError: the file is damaged, not a checkpoint, or belongs to another run. It is not changed.
        """
        return ranks.from_first(self._read)

    def _read(self) -> dict[str, Any] | None:
        if not os.path.lexists(self.path):
            return None
        payload = load_tensors(self.path)
        if not isinstance(payload, dict) or payload.get("format") != FORMAT:
            raise CheckpointError(f"{self.path} is not a checkpoint of this program (format {FORMAT})")
        identity = payload.get("identity")
        if isinstance(identity, dict):
            identity.setdefault(DATA, self.identity[DATA])  # early checkpoints of version 0.1 lack it
        for what, value in self.identity.items():
            if not isinstance(identity, dict) or identity.get(what) != value:
                raise CheckpointError(
                    f"{self.path} belongs to another run: its {what} differs. Choose another folder, or move it away."
                )
        return payload
