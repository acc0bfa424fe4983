"""CIFAR-10's Python version: written here in its layout, and the real one where it is."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from stochprune import data


def write(folder: Path, name: str, images: np.ndarray, labels: list[int]) -> None:
    with (folder / name).open("wb") as file:
        pickle.dump({b"data": images, b"labels": labels, b"batch_label": b"x"}, file, protocol=2)


@pytest.fixture
def folder(tmp_path):
    inner = tmp_path / "cifar-10-batches-py"
    inner.mkdir()
    numbers = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        write(inner, name, numbers.integers(0, 256, (4, 3072), dtype=np.uint8), numbers.integers(0, 10, 4).tolist())
    return tmp_path


@pytest.mark.parametrize("inner", [False, True])
def test_batches_are_joined_and_standardised_by_channel(folder, inner):
    place = folder / "cifar-10-batches-py"
    dataset = data.load("cifar10", place if inner else folder)
    assert dataset.train_x.shape == (20, 3, 32, 32) and dataset.test_x.shape == (4, 3, 32, 32)
    raw = [pickle.loads((place / f"data_batch_{i}").read_bytes()) for i in range(1, 6)]
    images = np.concatenate([part[b"data"] for part in raw]).reshape(20, 3, 32, 32) / 255
    assert dataset.train_y.tolist() == [label for part in raw for label in part[b"labels"]]
    mean, std = images.mean(axis=(0, 2, 3)), images.std(axis=(0, 2, 3))
    expected = (images - mean[:, None, None]) / std[:, None, None]
    assert torch.allclose(dataset.train_x, torch.from_numpy(expected).float(), atol=1e-3)


def test_missing_damaged_and_hostile_files_are_named(folder):
    place = folder / "cifar-10-batches-py"
    with pytest.raises(ValueError, match=r"cifar10 .*data_dir"):
        data.load("cifar10")
    with pytest.raises(FileNotFoundError, match="data_batch_1"):
        data.load("cifar10", folder / "other")
    whole = (place / "data_batch_3").read_bytes()
    (place / "data_batch_3").write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"data_batch_3 .*CIFAR-10"):
        data.load("cifar10", folder)
    write(place, "data_batch_3", np.zeros((4, 100), np.uint8), [0] * 4)
    with pytest.raises(ValueError, match=r"data_batch_3: images.*got uint8 \[4, 100\]"):
        data.load("cifar10", folder)
    (place / "data_batch_3").write_bytes(pickle.dumps(Hostile(place / "ran")))
    with pytest.raises(ValueError, match=r"posix\.mkdir"):
        data.load("cifar10", folder)
    assert not (place / "ran").exists()


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.slow
def test_the_real_files():
    place = Path(os.environ.get("STOCHPRUNE_DATA", "nowhere")) / "cifar10"
    if not (place / "cifar-10-batches-py").is_dir():
        pytest.skip("STOCHPRUNE_DATA/cifar10/cifar-10-batches-py is not there")
    dataset = data.load("cifar10", place)
    assert dataset.train_x.shape == (50000, 3, 32, 32) and dataset.train_y.bincount().tolist() == [5000] * 10
