"""Every script in examples/ runs, and the trainings among them end with sparse networks that work."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SPARSITIES = {"own_loop": 0.95, "lightning_digits": 0.9, "accelerate_loop": 0.9, "data_parallel": 0.9}


def run(script: Path, folder: Path) -> str:
    """Run a script in a folder; return what it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, script], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def missing(script: Path) -> list[str]:
    """Return the packages that a script imports and that are not installed."""
    names = set()
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return sorted(name for name in names if importlib.util.find_spec(name) is None)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs(example, tmp_path):
    if lacking := missing(example):
        pytest.skip(f"needs {', '.join(lacking)}")
    printed = run(example, tmp_path)
    if example.stem in SPARSITIES:
        error, sparsity = re.search(r"error ([\d.]+) %, sparsity ([\d.]+)$", printed.strip()).groups()
        assert float(error) < 8
        assert float(sparsity) == pytest.approx(SPARSITIES[example.stem], abs=1e-3)
