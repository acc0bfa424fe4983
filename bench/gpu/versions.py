"""Record the versions only, for a check without the installation step: they identify the machine of its rows."""

from __future__ import annotations

from bench.gpu.install import healthy as healthy
from bench.gpu.install import run as run


def cases() -> list[str]:
    """Return the one case."""
    return ["versions"]
