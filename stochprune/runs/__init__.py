"""Runs: their folders, files, checkpoints and devices. Nothing here knows of pruning."""

from stochprune.runs.checkpoint import Checkpoint
from stochprune.runs.device import device_name, device_of
from stochprune.runs.digests import fingerprint, json_digest, tensor_digest
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
    "json_digest",
    "load_tensors",
    "read_json",
    "save_tensors",
    "tensor_digest",
    "versions",
    "write_json",
]
