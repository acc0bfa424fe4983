"""CIFAR-10 in its Python version."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = "cifar-10-batches-py"


def read_cifar10(folder: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and test part: images uint8 [n, 3, 32, 32] and labels int64 [n].

    Args:
        folder: holds ``data_batch_1`` .. ``data_batch_5`` and ``test_batch``, or the folder ``cifar-10-batches-py``
            with them.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or holds anything but arrays, numbers, strings and their containers.
    """
    inner = folder / FOLDER
    place = inner if inner.is_dir() else folder
    train = [_read(place / f"data_batch_{i}") for i in range(1, 6)]
    images, labels = (torch.cat(parts) for parts in zip(*train, strict=True))
    return (images, labels), _read(place / "test_batch")


class _Arrays(pickle.Unpickler):
    """Unpickles numpy arrays and plain containers, and refuses all else: a pickle can run any code."""

    ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "_frombuffer", "encode"})

    def find_class(self, module: str, name: str) -> Any:
        if (module.split(".")[0] == "numpy" and name in self.ALLOWED) or (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a data file")


def _read(path: Path) -> tuple[Tensor, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; CIFAR-10 in its Python version is looked for in {path.parent}")
    try:
        content = _Arrays(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        images, labels = np.asarray(content[b"data"]), np.asarray(content[b"labels"])
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{path} is no batch of CIFAR-10: {error}") from error
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3072 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{path}: images must be uint8 [n, 3072] with n labels, got {images.dtype} {images.shape}, "
            f"labels {labels.shape}"
        )
    return torch.from_numpy(images.reshape(-1, 3, 32, 32)), torch.from_numpy(labels.astype(np.int64))
