"""Runs: their configurations, folders, files, checkpoints, devices and progress. Nothing here knows of pruning."""

from stochprune.runs.checkpoint import Checkpoint
from stochprune.runs.config import Config, digest, option
from stochprune.runs.device import device_name, device_of
from stochprune.runs.digests import fingerprint, json_digest, tensor_digest
from stochprune.runs.files import CheckpointError, load_tensors, read_json, save_tensors, write_json
from stochprune.runs.folder import claim, file_name
from stochprune.runs.results import versions
from stochprune.runs.run import Run, open_run, run_folder

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Config",
    "Run",
    "claim",
    "device_name",
    "device_of",
    "digest",
    "file_name",
    "fingerprint",
    "json_digest",
    "load_tensors",
    "open_run",
    "option",
    "read_json",
    "run_folder",
    "save_tensors",
    "tensor_digest",
    "versions",
    "write_json",
]
