"""Trainings in two processes do what they do in one, with the same masks and a dropout of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def run(folder: Path, name: str, *, also_alone: bool) -> None:
    """Run a training of ``distributed.py`` in two processes, and beside them in one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (folder / "path").mkdir()
    (folder / "path" / "tests").symlink_to(ROOT / "tests")  # not the root, whose folder kernels is in the way
    fixed = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder / "path")}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    command = [sys.executable, str(ROOT / "tests" / "integrations" / "distributed.py"), str(folder), name]
    ranks = [{**place, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    each = [{}, *ranks] if also_alone else ranks
    started = [subprocess.Popen(command, cwd=folder, env={**fixed, **own}) for own in each]
    assert [process.wait(timeout=300) for process in started] == [0] * len(each)


@pytest.mark.slow
def test_two_processes_train_as_one(transformers, tmp_path):
    run(tmp_path, "masks", also_alone=True)
    (one, logs), *two = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    for name, value in one.items():
        assert torch.equal(two[0][0][name], two[1][0][name]), name
        assert torch.allclose(two[0][0][name], value, rtol=1e-4, atol=1e-6), name
    assert [entry["skipped_steps"] for entry in logs if "skipped_steps" in entry] == [1, 1]
    for key in ("loss", "mean_keep", "skipped_steps"):
        ours = [entry[key] for entry in two[0][1] if key in entry]
        assert ours == pytest.approx([entry[key] for entry in logs if key in entry], rel=1e-4)


@pytest.mark.slow
def test_each_process_drops_activations_of_its_own(transformers, tmp_path):
    """The processes have one text and one mask; a training from a checkpoint goes on with the same dropout."""
    run(tmp_path, "dropout", also_alone=False)
    found = {name: [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1)] for name in ("without", "whole")}
    outputs = {name: [first for first, _ in each] for name, each in found.items()}
    assert torch.equal(*outputs["without"]) and not torch.equal(*outputs["whole"])
    for rank in (0, 1):
        whole, resumed = found["whole"][rank][1], torch.load(tmp_path / f"resumed-{rank}.pt")[1]
        assert whole.keys() == resumed.keys()
        for name, value in whole.items():
            assert torch.equal(resumed[name], value), name


@pytest.mark.slow
def test_each_process_of_lightning_drops_activations_of_its_own(tmp_path):
    pytest.importorskip("lightning")
    run(tmp_path, "lightning", also_alone=False)
    outputs = {name: [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1)] for name in ("without", "with")}
    assert torch.equal(*outputs["without"]) and not torch.equal(*outputs["with"])
