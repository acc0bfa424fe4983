"""A launch on another device leaves the thread's current device as it was."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.cuda.emulation import HERE, compile_for_host


def test_the_current_device_comes_back(tmp_path: Path) -> None:
    program = tmp_path / "current_device"
    compile_for_host([HERE / "current_device.cpp"], program)
    lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines == ["inside 2", "after 1", "thrown 1", "missing 1 CUDA: invalid device", "same 0 calls"]


def test_launches_take_it(tmp_path: Path) -> None:
    """Nothing in the CUDA sources sets the device in another way."""
    sources = [path for path in (HERE.parents[1] / "csrc").rglob("*") if path.is_file()]
    assert [path.name for path in sources if "cudaSetDevice" in path.read_text()] == ["current_device.h"]
