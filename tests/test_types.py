"""Type checkers find the mistakes that they should: swapped arguments, a backend that lacks a function."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")
ROOT = Path(__file__).parent.parent

HEAD = """
from torch import Tensor
from stochprune import native
from stochprune.address import KLTerm, Logits, Mask
from stochprune.backends import Backend

def swapped(backend: Backend, x: Tensor, weight: Tensor, logits: Logits, mask: Mask) -> None:
    backend.masked_linear(x, {arguments}, None, mask=mask)
"""
GOOD = HEAD.format(arguments="weight, logits")
SWAPPED = HEAD.format(arguments="logits, weight")
LACKING = """
from stochprune.backends import Backend

class Lacking:
    NAME = "lacking"
    MATRICES = False

backend: Backend = Lacking()
"""


TEXTS = {"good": GOOD, "swapped": SWAPPED, "lacking": LACKING}


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return mypy's errors for each text, from one run."""
    folder = tmp_path_factory.mktemp("snippets")
    paths = {name: folder / f"{name}.py" for name in TEXTS}
    for name, path in paths.items():
        path.write_text(TEXTS[name])
    command = [sys.executable, "-m", "mypy", *map(str, paths.values())]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    # By the name of the file: mypy repeats a cached error with the folder of an earlier run.
    return {name: "\n".join(line for line in lines if f"/{name}.py:" in line and ": error:" in line) for name in TEXTS}


def test_swapped_arguments_and_missing_functions_are_type_errors(errors):
    assert errors["good"] == ""
    assert 'expected "Logits"' in errors["swapped"]
    assert 'variable has type "Backend"' in errors["lacking"]
