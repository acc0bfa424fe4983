"""A step whose cases go wrong in every way that a GPU's do; the variable ``FAULTS`` names them. It needs no torch."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.gpu.job import Skip, Unusable

errors: list[str] = []


def cases() -> list[str]:
    return os.environ["FAULTS"].split()


def healthy() -> bool:
    return not errors


def lost() -> str | None:
    return errors[0] if errors else None


def run(case: str) -> dict[str, Any] | Iterator[dict[str, Any]]:
    kind = case.split("-")[0]
    if errors:
        raise RuntimeError("CUDA error: the context is lost")
    if kind == "raises":
        raise ValueError("a wrong shape")
    if kind == "sticky":
        errors.append(case)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if kind == "late":  # the kernel fails after the case has looked
        errors.append("CUDA error: an illegal memory access was encountered")
    if kind == "segfault":
        ctypes.string_at(0)
    if kind == "exits":
        sys.exit(3)
    if kind == "skips":
        raise Skip("not built")
    if kind == "unusable":
        raise Unusable("no GPU here")
    if kind == "hangs":  # with a child that ignores the end of its parent
        child = subprocess.Popen(["sleep", "60"])
        Path(os.environ["CHILD"]).write_text(f"{os.getpid()} {child.pid}")
        time.sleep(60)
    if kind == "parts":
        return parts()
    return {"value": len(case)}


def parts() -> Iterator[dict[str, Any]]:
    yield {"first": 1}
    raise RuntimeError("an error after a part")
