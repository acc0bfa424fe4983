"""The commit and the machine of a run."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import torch

import stochprune
from stochprune import backends
from stochprune.doctor.machine import processor
from stochprune.runs.device import device_name


def about(device: torch.device) -> dict[str, str]:
    """Return what times depend on besides their configuration: the code, the machine, the backend and versions."""
    backend = backends.resolve(torch.empty(1, device=device))
    return {
        "commit": commit(),
        "machine": processor()["processor"],
        "device": device_name(device),
        "backend": f"{backend.NAME}: {backend.describe()}",
        "torch": torch.__version__,
    }


def commit() -> str:
    """Return the commit of the clone that runs, and a digest of its changed files; the version if there is no clone."""
    root = Path(stochprune.__file__).parents[1]
    if not (root / ".git").exists():
        return stochprune.__version__
    try:
        head, changes = _git(root, "rev-parse", "HEAD"), _git(root, "diff", "HEAD", "--binary")
    except (OSError, subprocess.CalledProcessError):  # no git here, or a clone of another user
        return stochprune.__version__
    return head.decode().strip() + (f"+{hashlib.blake2s(changes).hexdigest()[:8]}" if changes else "")


def _git(root: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", "-C", root, *arguments], capture_output=True, check=True).stdout
