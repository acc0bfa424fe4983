"""Checkpoints: written whole or not at all, read without running foreign code, refused if of another run."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

FORMAT = "stochprune-checkpoint-1"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or that belongs to another run."""


def fingerprint(model: nn.Module) -> str:
    """Hexadecimal digest of a model's state: names, dtypes, shapes and every byte."""
    digest = hashlib.blake2s()
    for name, value in sorted(model.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class Checkpoint:
    """The checkpoint file of one run.

    Args:
        folder: where ``checkpoint.pt`` lies; made if missing.
        config: the digest of the run's configuration.
        start: the fingerprint of the model as it was before the first step.
        every: optimiser steps from one checkpoint to the next.
    """

    def __init__(self, folder: Path, config: str, start: str, every: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "checkpoint.pt"
        self.identity = {"configuration": config, "model or starting weights": start}
        self.every = every

    def save(self, payload: dict[str, Any]) -> None:
        """Replace the checkpoint; until the new one is complete on disk the former stays."""
        partial = self.path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save({"format": FORMAT, "identity": self.identity, **payload}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)

    def load(self) -> dict[str, Any] | None:
        """The last payload saved, or None if there is none.

        Raises:
            CheckpointError: the file is truncated, foreign, or of another run. The file is left as it is.
        """
        if not self.path.exists():
            return None
        try:
            payload = torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{self.path} cannot be read: it is truncated or not a checkpoint. Move it away to start afresh."
            ) from error
        if not isinstance(payload, dict) or payload.get("format") != FORMAT:
            raise CheckpointError(f"{self.path} is not a checkpoint of this program (format {FORMAT})")
        for what, value in self.identity.items():
            if payload["identity"].get(what) != value:
                raise CheckpointError(
                    f"{self.path} belongs to another run: its {what} differs. Choose another folder, or move it away."
                )
        return payload
