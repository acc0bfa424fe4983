"""The package as a backend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from stochprune import kernels

ROOT = Path(__file__).parents[2]


def test_refuses_its_bare_name() -> None:
    run = subprocess.run([sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode
    assert "ImportError: this folder is the package stochprune.kernels" in run.stderr


def test_leaves_float64_to_the_reference() -> None:
    half, double = torch.zeros(1, dtype=torch.float16), torch.zeros(1, dtype=torch.float64)
    assert kernels.supports(half, torch.zeros(1)) and not kernels.supports(half, double)


def test_describes_itself() -> None:
    assert kernels.NAME == "triton" and kernels.describe().startswith("Triton 3.")
