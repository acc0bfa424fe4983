"""The storage format of MACKO (Macko and Boža 2025, arXiv 2511.13061), for products of pruned matrices with a vector.

A row is the list of its weights that are not 0, from left to right, each with its distance from the one before it: the
number of zeros between them, 0 .. 15. Where there are more zeros, a 0 is stored as every 16th of them. Two distances
share a byte, the first one in the low bits. The layout is that of ``macko_spmv.compress``, version 0.2.0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stochprune.arguments import checked
from stochprune.extras import extra
from stochprune.runs.files import replacing
from stochprune.scores import by_output, prunable_weights

MOST_ZEROS = 15
ALIGNED = 8
"""The number of stored values is filled up to a multiple of this."""


class MackoMatrix(NamedTuple):
    """A matrix as ``macko_spmv.multiply`` takes it.

    Attributes:
        values: float16 [S], S the number of stored values, filled up with zeros.
        deltas: uint8 [S / 2], the zeros before each value.
        row_indices: int32 [rows + 1], where each row begins in ``values``.
        rows, cols: of the matrix.
    """

    values: Tensor
    deltas: Tensor
    row_indices: Tensor
    rows: int
    cols: int

    @property
    def nbytes(self) -> int:
        """Return the bytes of the tensors."""
        return self.values.nbytes + self.deltas.nbytes + self.row_indices.nbytes


@checked
def macko_compress(weight: Tensor) -> MackoMatrix:
    """Return a matrix in the format of MACKO.

    Args:
        weight: [rows, cols], converted to float16.

    Raises:
        ValueError: not a matrix, or numbers that float16 cannot hold.
    """
    if weight.dim() != 2:
        raise ValueError(f"macko_compress: weight must be a matrix, got shape {tuple(weight.shape)}")
    dense = weight.detach().to("cpu", torch.float16)
    if not dense.isfinite().all():
        raise ValueError("macko_compress: weight has numbers that float16 cannot hold")
    matrix = dense.numpy()
    rows, cols = np.nonzero(matrix)
    before = np.where(np.diff(rows, prepend=-1) == 0, np.roll(cols, 1), -1)  # the column of the value before, or -1
    gaps = cols - before - 1
    fillers = gaps // (MOST_ZEROS + 1)  # each stands for 15 zeros and itself
    ends = np.cumsum(fillers + 1)  # behind the value, in the list of all stored values
    count = int(ends[-1]) if len(ends) else 0
    stored = -(-count // ALIGNED) * ALIGNED
    values, deltas = np.zeros(stored, np.float16), np.zeros(stored, np.uint8)
    deltas[:count] = MOST_ZEROS
    values[ends - 1], deltas[ends - 1] = matrix[rows, cols], gaps % (MOST_ZEROS + 1)
    sizes = np.bincount(rows, weights=fillers + 1, minlength=len(matrix)).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    if starts[-1] > np.iinfo(np.int32).max:
        raise ValueError(f"macko_compress: {starts[-1]} stored values are more than 32 bits count")
    packed = deltas[0::2] | deltas[1::2] << 4
    numbers, bits, indices = map(torch.from_numpy, (values, packed, starts.astype(np.int32)))
    return MackoMatrix(numbers, bits, indices, *matrix.shape)


@checked
def macko_decompress(matrix: MackoMatrix) -> Tensor:
    """Return a matrix of the format of MACKO as a dense one, float16 [rows, cols]."""
    starts, count = matrix.row_indices.numpy(), int(matrix.row_indices[-1])
    packed = matrix.deltas.numpy()
    deltas = np.stack([packed & MOST_ZEROS, packed >> 4], 1).reshape(-1)[:count].astype(np.int64)
    rows = np.repeat(np.arange(matrix.rows), np.diff(starts))
    reached = np.concatenate([[0], np.cumsum(deltas + 1)])
    dense = np.zeros((matrix.rows, matrix.cols), np.float16)
    dense[rows, reached[1:] - 1 - reached[starts[rows]]] = matrix.values.numpy()[:count]
    return torch.from_numpy(dense)


@checked
def export_macko(model: torch.nn.Module, path: str | Path) -> dict[str, float]:
    """Write a pruned model's tensors as safetensors, each matrix with zeros in the format of MACKO.

    ``NAME.weight`` becomes ``NAME.c_0``, ``c_1``, ``c_2``: values, deltas and row indices; its shape is in the metadata
    of the file, as ``NAME.shape``: ``"rows cols"``. These are the names of the tensors that MACKO's own scripts use.

    Args:
        model: from :func:`stochprune.harden`.
        path: of the file, which is replaced.

    Returns:
        By weight name, the bytes in this format as a fraction of those of float16.

    Raises:
        MissingExtraError: safetensors is not installed.
        ValueError: no matrix has zeros, and the errors of :func:`macko_compress`.
    """
    with extra("files", "export_macko"):
        from safetensors.torch import save_file

    tensors: dict[str, Any] = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    metadata, shares = {"format": "macko"}, {}
    for name, weight in by_output(model, dict(prunable_weights(model))).items():
        if weight.dim() != 2 or not bool((weight == 0).any()):
            continue
        matrix, stem = macko_compress(weight.detach()), name.removesuffix(".weight")
        tensors |= {f"{stem}.c_{i}": tensor for i, tensor in enumerate(matrix[:3])}
        metadata[f"{stem}.shape"] = f"{matrix.rows} {matrix.cols}"
        shares[name] = matrix.nbytes / (2 * weight.numel())
        del tensors[name]
    if not shares:
        raise ValueError(f"export_macko: no matrix of {type(model).__name__} has zeros: harden the model first")
    shared: dict[int, str] = {}
    kept = {name: x for name, x in tensors.items() if shared.setdefault(x.data_ptr(), name) == name or not x.numel()}
    with replacing(Path(path)) as file:
        save_file(kept, file.name, metadata)
    return shares
