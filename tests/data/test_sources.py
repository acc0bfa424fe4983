"""Data sets by name: digits as they come with scikit-learn, MNIST from files written here."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from stochprune.data import digits, load, mnist


def write_mnist(folder: Path, *, mark: str = "-", end: str = "", labels: int = 4) -> np.ndarray:
    """Four small IDX files: 5 training and 4 test images of 3x2 pixels. Returns the training pixels."""
    pixels = np.random.default_rng(0).integers(256, size=(5, 3, 2), dtype=np.uint8)
    arrays = {
        f"train-images{mark}idx3-ubyte": pixels,
        f"train-labels{mark}idx1-ubyte": np.array([9, 0, 1, 2, 3], np.uint8),
        f"t10k-images{mark}idx3-ubyte": pixels[:4] // 2,
        f"t10k-labels{mark}idx1-ubyte": np.arange(labels, dtype=np.uint8),
    }
    for name, array in arrays.items():
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        content = header + array.tobytes()
        (folder / (name + end)).write_bytes(gzip.compress(content) if end else content)
    return pixels


def test_digits_are_split_once_without_overlap() -> None:
    dataset = load("digits")
    assert dataset.shape == (1, 8, 8) and (len(dataset.train_x), len(dataset.test_x)) == (1437, 360)
    both = torch.cat([dataset.train_x, dataset.test_x]).flatten(1)
    scale = (both.max() - both.min()) / 16
    restored = ((both - both.min()) / scale).round().to(torch.int64)
    labelled = torch.cat([restored, torch.cat([dataset.train_y, dataset.test_y]).unsqueeze(1)], dim=1)
    raw = load_digits()
    expected = np.concatenate([raw.data.astype(np.int64), raw.target[:, None]], axis=1)
    assert sorted(labelled.tolist()) == sorted(expected.tolist())  # every image once, with its label


def test_digits_are_stratified_and_standardised_by_the_training_part() -> None:
    dataset = digits()
    shares = dataset.test_y.bincount() / load_digits().target.size * 5
    assert torch.allclose(shares, torch.from_numpy(np.bincount(load_digits().target)) / 1797, atol=3e-3)
    std, mean = torch.std_mean(dataset.train_x)
    assert abs(mean) < 1e-5 and abs(std - 1) < 1e-5
    assert abs(dataset.test_x.mean()) > 1e-4  # by its own statistics it would vanish


def test_digits_leave_the_global_generators_alone() -> None:
    of_torch, of_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert torch.equal(digits().train_x, digits().train_x)
    assert torch.equal(torch.get_rng_state(), of_torch) and np.array_equal(np.random.get_state()[1], of_numpy)


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("end", ["", ".gz"])
def test_mnist_is_found_under_every_spelling(tmp_path: Path, mark: str, end: str) -> None:
    pixels = torch.from_numpy(write_mnist(tmp_path, mark=mark, end=end)).double()
    dataset = load("mnist", tmp_path)
    std, mean = torch.std_mean(pixels)
    assert torch.allclose(dataset.train_x.squeeze(1).double(), (pixels - mean) / std, atol=1e-5)
    assert torch.allclose(dataset.test_x.squeeze(1).double(), (pixels[:4] // 2 - mean) / std, atol=1e-5)
    assert dataset.train_y.tolist() == [9, 0, 1, 2, 3] and dataset.test_y.tolist() == [0, 1, 2, 3]
    assert dataset.shape == (1, 3, 2) and dataset.num_classes == 10


def test_idx_has_as_many_classes_as_its_labels_need(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    mine, known = load("idx", tmp_path), mnist(tmp_path)
    assert torch.equal(mine.train_x, known.train_x) and mine.name == "idx" and mine.num_classes == 10
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 5, 6, 0, 1, 2, 3]))
    assert load("idx", tmp_path, standardised=False).num_classes == 7


def test_missing_files_are_listed(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        mnist(tmp_path)
    for name in ("t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte", "t10k-images-idx3-ubyte.gz"):
        assert str(tmp_path) in str(caught.value) and name in str(caught.value)


def test_counts_that_differ_are_named(tmp_path: Path) -> None:
    write_mnist(tmp_path, labels=3)
    with pytest.raises(ValueError, match=rf"{tmp_path}/t10k-images-idx3-ubyte .*4 images.* 3 labels"):
        mnist(tmp_path)


def test_swapped_files_are_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").replace(tmp_path / "train-images-idx3-ubyte")
    write_labels = tmp_path / "t10k-labels-idx1-ubyte"
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(write_labels.read_bytes())
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.*got .* \(5,\)"):
        mnist(tmp_path)


def test_constant_images_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 5, 3, 2)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header + bytes(30))
    with pytest.raises(ValueError, match=r"mnist: .*inputs \(5, 1, 3, 2\)"):
        mnist(tmp_path)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'emnist'.*digits, mnist"):
        load("emnist")


@pytest.mark.parametrize("name", ["mnist", "idx"])
def test_files_without_a_folder_say_what_is_needed(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} .*data_dir"):
        load(name)


@pytest.mark.skipif("STOCHPRUNE_DATA" not in os.environ, reason="STOCHPRUNE_DATA does not name a folder with mnist/")
def test_the_real_mnist() -> None:
    dataset = load("mnist", Path(os.environ["STOCHPRUNE_DATA"]) / "mnist")
    assert dataset.train_x.shape == (60000, 1, 28, 28) and dataset.test_x.shape == (10000, 1, 28, 28)
    assert dataset.train_y.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert dataset.train_y[:5].tolist() == [5, 0, 4, 1, 9] and dataset.test_y[:5].tolist() == [7, 2, 1, 0, 4]
    assert abs(dataset.train_x.min() + 0.1307 / 0.3081) < 1e-3
