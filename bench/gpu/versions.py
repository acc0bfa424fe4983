"""The versions alone, for a check that does not install: they say of which machine its rows are."""

from __future__ import annotations

from bench.gpu.install import healthy as healthy
from bench.gpu.install import run as run


def cases() -> list[str]:
    """One."""
    return ["versions"]
