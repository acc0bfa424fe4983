"""Everything the GPU tests launch is recorded without a GPU, compiles for Hopper and passes the gates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def recorded(output: Path, environment: dict[str, str], *tests: str) -> None:
    command = [sys.executable, "-O", "-m", "pytest", "-q", "--assert=plain", "-n", "0", "-p", "no:cacheprovider"]
    command += ["-p", "tests.recorder", "--record", str(output), *tests]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def checked(launches: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.recorded", str(launches)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "tests",
    [["tests/gpu/test_large.py"], pytest.param(["tests/gpu"], marks=pytest.mark.slow)],
    ids=["sample", "all"],
)
def test_gates(tests: list[str], tmp_path: Path, compiler_environment: dict[str, str]) -> None:
    launches = tmp_path / "launches.pickle"
    recorded(launches, compiler_environment, *tests)
    run = checked(launches, compiler_environment)
    assert run.returncode == 0, run.stdout + run.stderr
