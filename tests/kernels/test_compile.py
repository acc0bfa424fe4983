"""Every kernel compiles for every architecture within the gates, without a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.front_end import narrow_products

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "command",
    [
        ["bench.compile_table", "--check", "--quick"],
        pytest.param(["bench.compile_table", "--check"], marks=pytest.mark.slow),
        ["bench.front_end"],
    ],
    ids=["quick", "full", "front end"],
)
def test_gates(command: list[str], compiler_environment: dict[str, str]) -> None:
    run = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=compiler_environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_narrow_products_are_found() -> None:
    program = """
      tt.func public @kernel(%x: i32) {
        %c64 = arith.constant 64 : i32 loc(#loc)
        %a = arith.muli %x, %c64 : i32 loc(#loc)
        %b = tt.splat %c64 : i32 -> tensor<16xi32> loc(#loc)
        %c = arith.muli %m, %b : tensor<16xi32> loc(#loc)
        %d = arith.muli %m, %stride : tensor<16xi32> loc(#loc)
        %e = arith.muli %x, %x : i32 loc(#loc)
        %f = arith.muli %wide, %stride : tensor<16xi64> loc(#loc)
      }
    """
    assert [line.split()[0] for line in narrow_products(program)] == ["%d", "%e"]
