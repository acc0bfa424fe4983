"""Commands that are killed at hostile moments, and started again, end as if nothing had happened."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from stochprune.runs import load_tensors, read_json
from tests.runs.owners import STUDY

COMMANDS = {
    "finetune": "finetune --scores magnitude --sparsities 0.9 --seeds 1 --dense-epochs 1 --epochs 1 --retrain-epochs 1 "
    "--batch-size 256 --draws 2 --checkpoint-every 2",
    "certify": "certify --posteriors masks --prior-epochs 1 --epochs 1 --draws 20 --checkpoint-every 3",
    "study": "study STUDY",
    "bounds": "bounds --layers 2 --epochs 4 --lr 1e-2 --rounds 1 --round-epochs 1 --draws 20 --scales 1.0 "
    "--sketch-sizes 8 --sketch-trials 1 --cushion-examples 2 --margin-share 0.5",
    "linear-lab": "linear-lab --examples 20 --features 4 --steps 10 --pairs 2",
}
TIMES = {"seconds", "hours"}


def without_times(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: without_times(value) for key, value in content.items() if key not in TIMES}
    return [without_times(value) for value in content] if isinstance(content, list) else content


def bits(content: Any) -> Any:
    """Tensors as bytes."""
    if isinstance(content, dict):
        return {key: bits(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [bits(value) for value in content]
    if isinstance(content, torch.Tensor):
        return content.dtype, content.shape, content.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return content


def contents(folder: Path) -> dict[str, Any]:
    """Every file in a folder, by its path."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            found[name] = without_times(read_json(path, "file"))
        elif path.suffix == ".pt":
            found[name] = bits(load_tensors(path))
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def same(first: Any, second: Any) -> bool:
    """Bit for bit, but for the paths of the linear lab: LAPACK rounds by where memory lies."""
    if isinstance(first, dict) and "paths" in first:
        return close(first["paths"], second["paths"]) and first | {"paths": None} == second | {"paths": None}
    return first == second


def close(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(close(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(close, first, second))
    return math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-12) if isinstance(first, float) else first == second


def check(out: Path, seed: int, kills: int) -> None:
    study = out / "masks.yaml"
    study.write_text(STUDY)
    commands = {
        name: [str(study) if word == "STUDY" else word for word in text.split()] for name, text in COMMANDS.items()
    }
    script = Path(__file__).with_name("killing.py")
    arguments = [sys.executable, str(script), str(out), str(seed), str(kills), json.dumps(commands)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        whole = contents(out / name / "whole")
        assert any(path.endswith("results.json") for path in whole)
        for i in range(kills):
            resumed = contents(out / name / str(i))
            assert resumed.keys() == whole.keys(), (name, i)  # so neither locks nor half-written files are left
            assert [path for path in whole if not same(resumed[path], whole[path])] == [], (name, i)


def test_killed_commands_end_as_if_nothing_had_happened(tmp_path):
    check(tmp_path, seed=0, kills=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_at_many_more_moments(tmp_path, seed):
    check(tmp_path, seed, kills=12)
