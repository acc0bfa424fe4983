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


def run_page(name: str, folder: Path) -> str:
    """Run the Python of a page of docs/ in a folder; return what it prints."""
    script = folder / "page.py"
    page = (ROOT / "docs" / name).read_text()
    script.write_text("\n".join(re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)))
    return run(script, folder)


def test_the_python_of_the_page_about_own_loops_runs(tmp_path):
    assert run_page("own-loop.md", tmp_path).splitlines()[-1].startswith("0.9")
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"mask.csv", "weights.csv"}


def test_the_python_of_the_page_about_training_with_transformers_runs(tmp_path):
    pytest.importorskip("accelerate")
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("needs transformers")
    assert re.search(r"^0\.4\d of the weights", run_page("transformers-training.md", tmp_path), re.MULTILINE)
