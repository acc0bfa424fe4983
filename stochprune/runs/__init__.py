"""Runs: their folders, files, checkpoints and devices. Nothing here depends on pruning."""

from stochprune.runs.checkpoint import Checkpoint, fingerprint
from stochprune.runs.device import device_name, device_of
from stochprune.runs.files import CheckpointError, load_tensors, read_json, save_tensors, write_json
from stochprune.runs.folder import claim, file_name
from stochprune.runs.results import versions

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "claim",
    "device_name",
    "device_of",
    "file_name",
    "fingerprint",
    "load_tensors",
    "read_json",
    "save_tensors",
    "versions",
    "write_json",
]
