"""Record the versions, and install for this GPU alone, without a network."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.gpu.job import LENGTH, Unusable, die_with_parent, tool

ROOT = Path(__file__).parents[2]
UNKNOWN = "unknown"
SAID_SECONDS = 10
SOURCES = ("stochprune/**/*.py", "kernels/*.py", "csrc/**/*", "bench/**/*.py", "CMakeLists.txt", "setup.py")
PIP = ("-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--editable", ".")
METADATA = ("setup.py", "-q", "egg_info")  # gives the package its version, also if it is imported from its folder
IN_PLACE = ("setup.py", "-q", "build_ext", "--inplace")  # used if pip is missing or cannot write


def cases() -> list[str]:
    """Return the cases. The versions come first, because they identify the machine of all other rows."""
    return ["versions", "package"]


def healthy() -> bool:
    """Return True: no GPU is used here."""
    return True


def run(case: str) -> dict[str, Any]:
    """Return the versions, or how the package was installed and how long that took."""
    return versions() if case == "versions" else package()


def versions() -> dict[str, Any]:
    """Return the versions of all that affects times, from the GPU to our source; ``unknown`` where there is none.

    Raises:
        Unusable: torch sees no GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise Unusable("gpu-check needs an NVIDIA GPU; torch sees none on this machine")
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": ".".join(map(str, torch.cuda.get_device_capability(0))),
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        "cuda": torch.version.cuda or UNKNOWN,
        **{name: version(name) for name in ("torch", "triton", "numpy", "pytest")},
        "python": platform.python_version(),
        "nvcc": said(["nvcc", "--version"], r"release ([\d.]+)"),
        "ncu": said(["ncu", "--version"], r"Version ([\d.]+)"),
        "commit": said(["git", "rev-parse", "HEAD"]),
        "changed": said(
            ["git", "status", "--porcelain", "--untracked-files=no"], r"(?s)(.*)"
        ),  # files since the commit
        "source": source(),
        "date": time.strftime("%Y-%m-%d"),
    }


def version(name: str) -> str:
    """Return a module's version."""
    try:
        return str(importlib.import_module(name).__version__)
    except Exception:  # a broken installation may raise anything
        return UNKNOWN


def said(command: list[str], pattern: str = r"(\S+)") -> str:
    """Return the part of a program's output that the pattern's group matches, after ten seconds at most.

    The program prints to a file, so that we need not wait for its end: a process that the GPU's driver holds cannot be
    killed.
    """
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent
            )
            status = process.wait(SAID_SECONDS)
        except OSError:
            return UNKNOWN
        except subprocess.TimeoutExpired:
            process.kill()
            return UNKNOWN
        output.seek(0)
        found = re.search(pattern, output.read().decode(errors="replace"))
    return found[1].strip() if status == 0 and found else UNKNOWN


def source() -> str:
    """Return a digest of the measured source files, which identifies their state without git."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in SOURCES for path in ROOT.glob(pattern) if path.is_file()}):
        if "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def package() -> dict[str, Any]:
    """Install for this GPU with pip, or in place if that fails, and return which backends can be loaded.

    Raises:
        RuntimeError: both failed.
    """
    import torch

    major, minor = torch.cuda.get_device_capability(0)
    architecture = f"{major}{minor}{'a' if major >= 9 else ''}-real"
    environment = {**os.environ, "CUDAARCHS": architecture}
    tool([sys.executable, *METADATA], cwd=ROOT)
    errors, way = [], None
    for name, command in (("pip", PIP), ("in place", IN_PLACE)):
        start = time.monotonic()
        ended = tool([sys.executable, *command], cwd=ROOT, env=environment)
        if ended.returncode == 0:
            way = name
            break
        errors.append(f"{name}: {(ended.stdout + ended.stderr)[-LENGTH:]}")
    if way is None:
        raise RuntimeError("\n".join(errors))
    seconds = round(time.monotonic() - start, 1)
    backends = tool([sys.executable, "-c", BACKENDS], cwd=ROOT)
    states = backends.stdout.splitlines() or [backends.stderr[-LENGTH:]]
    return {"by": way, "architecture": architecture, "build_seconds": seconds, "backends": states, "errors": errors}


BACKENDS = "from bench.gpu import device; from stochprune import backends; print(backends.table())"
