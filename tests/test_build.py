"""The build of the extension: one that is ended leaves the extension as it was."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KILLED_WHILE_LINKING = """
import runpy, shutil, subprocess, sys
from pathlib import Path

places = []

def run(command, **options):
    places.extend(Path(part.split("=")[1]) for part in command if part.startswith("-DCMAKE_LIBRARY_OUTPUT_DIRECTORY="))
    if "--build" in command:
        places[0].mkdir(parents=True, exist_ok=True)
        (places[0] / NAME).write_text("half")
        sys.exit("killed")

subprocess.run = run
shutil.which = lambda *args, **options: "cmake"
sys.argv = ["setup.py", "-q", "build_ext", "--inplace"]
runpy.run_path("setup.py")
"""


def test_a_build_that_is_killed_leaves_no_half_extension(tmp_path: Path) -> None:
    """Half a library crashes every process that imports it."""
    pytest.importorskip("pybind11")
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("stochprune", "kernels"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text('__version__ = "0"\n')
    name = "_C" + sysconfig.get_config_var("EXT_SUFFIX")
    (tmp_path / "stochprune" / name).write_text("old")
    code = f"NAME = {name!r}\n{KILLED_WHILE_LINKING}"
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "killed" in ended.stderr, ended.stderr
    halves = [path for path in tmp_path.rglob(name) if path.read_text() == "half"]
    assert halves and all("lib" in path.parts for path in halves)
    assert (tmp_path / "stochprune" / name).read_text() == "old"
