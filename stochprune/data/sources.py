"""The data sets and their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stochprune.data.cifar import read_cifar10
from stochprune.data.dataset import Dataset
from stochprune.data.idx import read_idx
from stochprune.extras import extra

NAMES = ("digits", "mnist", "idx", "cifar10")
HELP = (
    "Data set: digits (comes with scikit-learn), or mnist, idx (your own images in four files like MNIST's) or cifar10 "
    "(from their files in --data-dir)."
)
"""The help of each option that chooses a data set."""


def load(name: str, data_dir: Path | str | None = None, *, standardised: bool = True) -> Dataset:
    """The data set called ``name``: ``digits``, or ``mnist``, ``idx`` or ``cifar10`` from the files in ``data_dir``.

    Args:
        standardised: scale inputs to mean 0 and standard deviation 1 over all training pixels. False leaves the inputs
            in [0, 1], the pixels divided by the largest value of their format, so that no example depends on
            another. Certificates need this.

    Raises:
        ValueError: an unknown name, a folder that is needed and missing, or an error of the data set itself.
    """
    if name == "digits":
        return digits(standardised=standardised)
    if name in ("mnist", "idx"):
        if data_dir is None:
            raise ValueError(f"{name} needs data_dir, the folder of its four IDX files")
        return (mnist if name == "mnist" else idx)(data_dir, standardised=standardised)
    if name == "cifar10":
        if data_dir is None:
            raise ValueError("cifar10 needs data_dir, the folder of cifar-10-batches-py")
        return cifar10(data_dir, standardised=standardised)
    raise ValueError(f"unknown data set {name!r}; known are: {', '.join(NAMES)}")


def digits(*, standardised: bool = True) -> Dataset:
    """The 1797 handwritten digits of 8x8 pixels that come with scikit-learn, in one fixed split.

    Stratified by class: 1437 for training, 360 for testing. Inputs [n, 1, 8, 8] are scaled to [0, 1],
    then ``standardised`` with the mean and standard deviation over all training pixels.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    with extra("studies", "digits"):  # here: scikit-learn takes a second to import
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

    raw = load_digits()
    x = torch.from_numpy(raw.images).float().unsqueeze(1) / 16
    y = torch.from_numpy(raw.target).long()
    train, test = train_test_split(np.arange(len(y)), test_size=360, stratify=raw.target, random_state=0)
    return _dataset("digits", (x[train], y[train]), (x[test], y[test]), standardised)


def mnist(data_dir: Path | str, *, standardised: bool = True) -> Dataset:
    """MNIST (LeCun, Cortes and Burges) from its four IDX files, gzipped or not.

    Inputs [n, 1, 28, 28] are scaled to [0, 1], then ``standardised`` with the mean and standard deviation over all
    training pixels.

    Raises:
        FileNotFoundError: a file is missing; the message lists the names that were looked for.
        ValueError: a file is damaged, or the arrays do not fit together.
    """
    train, test = _idx_parts(data_dir)
    return _dataset("mnist", train, test, standardised)


def idx(data_dir: Path | str, *, standardised: bool = True) -> Dataset:
    """Grey images of your own, or Fashion-MNIST, from four IDX files with the names of MNIST's.

    Images may have any size. The number of classes is the largest label plus one; inputs and errors are as for
    :func:`mnist`.
    """
    train, test = _idx_parts(data_dir)
    num_classes = 1 + max((int(y.max()) for _, y in (train, test) if len(y)), default=0)
    return _dataset("idx", train, test, standardised, num_classes=num_classes)


def cifar10(data_dir: Path | str, *, standardised: bool = True) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009) from the batches of its Python version, in ``data_dir`` or ``cifar-10-batches-py``.

    Inputs [n, 3, 32, 32] are scaled to [0, 1], then ``standardised`` with the mean and standard deviation of each
    channel over all training pixels.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged.
    """
    (train_x, train_y), (test_x, test_y) = read_cifar10(Path(data_dir))
    train, test = (train_x.float() / 255, train_y), (test_x.float() / 255, test_y)
    return _dataset("cifar10", train, test, standardised, axes=(0, 2, 3))


def _idx_parts(data_dir: Path | str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the part that trains and the part that tests."""
    return _idx_part(Path(data_dir), "train"), _idx_part(Path(data_dir), "t10k")


def _idx_part(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images float32 [n, 1, rows, columns] in [0, 1] and labels int64 [n]."""
    image_path, label_path = _find(folder, f"{part}-images", 3), _find(folder, f"{part}-labels", 1)
    images, labels = read_idx(image_path), read_idx(label_path)
    for path, values, ndim in ((image_path, images, 3), (label_path, labels, 1)):
        if values.dtype != torch.uint8 or values.ndim != ndim:
            raise ValueError(f"{path} must hold uint8 in {ndim} dimensions, got {values.dtype} {tuple(values.shape)}")
    if len(images) != len(labels):
        raise ValueError(f"{image_path} holds {len(images)} images, but {label_path} {len(labels)} labels")
    return images.unsqueeze(1).float() / 255, labels.long()


def _find(folder: Path, stem: str, ndim: int) -> Path:
    names = [f"{stem}{mark}idx{ndim}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} holds none of {', '.join(names)}")


def _dataset(
    name: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    standardised: bool,
    axes: tuple[int, ...] | None = None,
    num_classes: int = 10,
) -> Dataset:
    """Make a data set; inputs [n, C, rows, columns] may be standardised over ``axes`` (default: all)."""
    if not standardised:
        return Dataset(name, *train, *test, num_classes=num_classes)
    std, mean = torch.std_mean(train[0], dim=axes, keepdim=True)
    if not bool((std > 0).all()):
        raise ValueError(f"{name}: the training inputs {tuple(train[0].shape)} are constant or none")
    return Dataset(name, (train[0] - mean) / std, train[1], (test[0] - mean) / std, test[1], num_classes=num_classes)
