"""CIFAR-10 in its Python version."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stochprune.data import pickled

FOLDER = "cifar-10-batches-py"
MAX_BYTES = 1 << 28


def read_cifar10(folder: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Read the training and the test part: images uint8 [n, 3, 32, 32] and labels int64 [n].

    Args:
        folder: contains ``data_batch_1`` .. ``data_batch_5`` and ``test_batch``, or the folder ``cifar-10-batches-py``
            with them.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, contains anything but arrays, numbers, strings and their containers (no code in
            a file is run, see :mod:`stochprune.data.pickled`), or has labels outside 0 .. 9.
    """
    inner = folder / FOLDER
    batches = inner if inner.is_dir() else folder
    train = [_read(batches / f"data_batch_{i}") for i in range(1, 6)]
    images, labels = (torch.cat(parts) for parts in zip(*train, strict=True))
    return (images, labels), _read(batches / "test_batch")


def _read(path: Path) -> tuple[Tensor, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {path.parent} must contain the Python version of CIFAR-10")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, but a batch of CIFAR-10 has 31 million")
    try:
        content = pickled.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not a batch of CIFAR-10: {error}") from error
    if not isinstance(content, dict) or not content.keys() >= {b"data", b"labels"}:
        raise ValueError(f"{path} is not a batch of CIFAR-10: it must contain a dictionary of b'data' and b'labels'")
    images, labels = content[b"data"], content[b"labels"]
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (3072,) or not len(images):
        raise ValueError(f"{path}: images must be uint8 [n, 3072], got {_kind(images)}")
    labels = labels.tolist() if isinstance(labels, np.ndarray) else labels
    if not isinstance(labels, list) or len(labels) != len(images):
        raise ValueError(f"{path}: labels must be a list, one per image of {len(images)}, got {_kind(labels)}")
    bad = [number for number, label in enumerate(labels) if type(label) is not int or not 0 <= label <= 9]
    if bad:
        raise ValueError(f"{path}: labels must be integers in 0 .. 9, label {bad[0]} is not")
    # A copy: the array is a view of the file's bytes, which must not be written to.
    return torch.from_numpy(images.reshape(-1, 3, 32, 32).copy()), torch.tensor(labels)


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return f"{type(value).__name__} of length {len(value)}" if isinstance(value, Sized) else type(value).__name__
