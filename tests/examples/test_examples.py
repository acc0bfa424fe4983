"""The examples run as they stand and give sparse networks that work."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = Path(__file__).parents[2] / "examples"
SPARSITIES = {
    "own_loop": (None, 0.95),
    "lightning_digits": ("lightning", 0.9),
    "accelerate_loop": ("accelerate", 0.9),
}
"""The package that an example needs, and the sparsity that it ends with."""


@pytest.mark.parametrize("name", SPARSITIES)
@pytest.mark.filterwarnings("ignore")
def test_a_training_ends_sparse_and_accurate(name, tmp_path, monkeypatch):
    package, expected = SPARSITIES[name]
    if package is not None:
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        error, sparsity = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]()
    assert sparsity == pytest.approx(expected, abs=1e-4)
    assert error < 8


@pytest.mark.filterwarnings("ignore")
def test_the_python_of_the_page_about_own_loops_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"^```python\n(.*?)^```$", (DOCS / "own-loop.md").read_text(), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    for block in code:
        exec(block, names)
    sp = names["sp"]
    assert sp.masks.sparsity(sp.masks.of(names["model"])) == pytest.approx(0.9, abs=1e-4)
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"mask.csv", "weights.csv"}
