"""Installed packages against the ranges that stochprune, and torch for Triton, declare."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from typing import NamedTuple

from torch.torch_version import TorchVersion

REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[[^\]]*\])?\s*(?:(?P<relation>>=|==)\s*(?P<version>[\w.+]+))?")
EXTRA = re.compile(r"""extra == ['"](\w+)['"]""")
FOR_DEVELOPERS = "dev"


class Package(NamedTuple):
    """One requirement: the range that is declared, the extras that ask for it, and the installed version."""

    name: str
    range: str
    extras: tuple[str, ...]  # empty: the core needs it
    installed: str | None

    @property
    def fits(self) -> bool:
        """True if the installed version is in the range, or if a package of an extra is missing."""
        if self.installed is None:
            return bool(self.extras)
        relation, version = self.range[:2], self.range[2:]
        if not version:
            return True
        given = TorchVersion(self.installed)
        return bool(given >= version) if relation == ">=" else bool(given == version)

    def __str__(self) -> str:
        return f"{self.name} {self.installed or 'missing'}" + ("" if self.fits else f" (needs {self.range})")


def packages() -> list[Package]:
    """Return the requirements of stochprune for users, by name, and the version of Triton that torch asks for."""
    found: dict[tuple[str, str], set[str]] = {}
    for name, wanted, extra in (*_requirements("stochprune"), *_tritons()):
        found.setdefault((name, wanted), set()).add(extra)
    return [
        Package(name, wanted, tuple(sorted(extras - {""})), _installed(name))
        for (name, wanted), extras in sorted(found.items())
        if extras != {FOR_DEVELOPERS}
    ]


def _tritons() -> Iterator[tuple[str, str, str]]:
    return ((name, wanted, "gpu") for name, wanted, _ in _requirements("torch") if name == "triton")


def _requirements(distribution: str) -> Iterator[tuple[str, str, str]]:
    """Yield name, range and extra of each requirement that this file can read."""
    try:
        declared = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:  # imported from its folder
        return
    for text in declared:
        wanted, _, marker = text.partition(";")
        found = REQUIREMENT.fullmatch(wanted.strip())
        if found:
            extra = EXTRA.search(marker)
            relation, version = found["relation"] or "", found["version"] or ""
            yield found["name"].lower(), f"{relation}{version}", extra[1] if extra else ""


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
