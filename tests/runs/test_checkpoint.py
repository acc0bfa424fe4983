"""Checkpoints that are damaged, foreign, or interrupted while written."""

from __future__ import annotations

import pytest
import torch

from stochprune.runs import Checkpoint, CheckpointError, save_tensors


def make(folder, config="c", start="s"):
    return Checkpoint(folder, config, start, every=10)


def test_round_trip(tmp_path):
    assert make(tmp_path / "new").load() is None
    make(tmp_path).save({"x": torch.arange(3), "n": 1})
    payload = make(tmp_path).load()
    assert payload["n"] == 1 and torch.equal(payload["x"], torch.arange(3))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated(tmp_path, share):
    checkpoint = make(tmp_path)
    checkpoint.save({"x": torch.arange(1000)})
    whole = checkpoint.path.read_bytes()
    checkpoint.path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt.*truncated"):
        checkpoint.load()
    assert checkpoint.path.stat().st_size == int(share * len(whole))


def test_foreign_files(tmp_path):
    checkpoint = make(tmp_path)
    checkpoint.path.write_text("not a checkpoint\n")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
        checkpoint.load()
    torch.save({"weight": torch.zeros(2)}, checkpoint.path)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
        checkpoint.load()
    save_tensors(checkpoint.path, [1, 2])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
        checkpoint.load()


def test_code_in_a_file_is_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (tmp_path.joinpath("run").write_text, ("x",))

    checkpoint = make(tmp_path)
    save_tensors(checkpoint.path, Payload())
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
        checkpoint.load()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("other", "what"),
    [({"config": "d"}, "configuration"), ({"start": "t"}, "model, starting weights or examples")],
)
def test_another_run(tmp_path, other, what):
    make(tmp_path).save({})
    with pytest.raises(CheckpointError, match=what):
        make(tmp_path, **other).load()


def test_a_failed_write_leaves_the_former(tmp_path, monkeypatch):
    checkpoint = make(tmp_path)
    checkpoint.save({"n": 1})

    def fail(value, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save({"n": 2})
    monkeypatch.undo()
    assert make(tmp_path).load()["n"] == 1
