"""The format of sparse files: a tensor is stored as a bit mask and the values that are kept.

A sparse file is a safetensors file. A tensor of n elements with enough zeros is two tensors in it: ``name:mask``, uint8
[n / 8 rounded up], bit i % 8 of byte i // 8 set where element i is kept; and ``name:values``, the kept ones in order.
Zero means that all bits are 0, so that -0 is kept. Other tensors are stored as they are. The metadata holds

- ``format`` and ``version``;
- ``tensors``: JSON, of each name in order its shape, its dtype, and how it is stored: ``dense``, ``mask``, or ``same``
  with the name of the tensor whose memory it shares;
- ``digest``: of ``tensors`` and of the names, dtypes, shapes and bytes of all that is stored.

At one bit a weight the mask of a 2:4 pattern takes what its two-bit indices would: two kept weights of every four.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stochprune.runs.digests import json_digest, tensor_digest

FORMAT, VERSION = "stochprune-sparse", "1"
_ENTRY = 128  # bytes that one more tensor takes in the header
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


class Contents(NamedTuple):
    """The content of a sparse file."""

    stored: dict[str, Tensor]
    metadata: dict[str, str]


class Entry(NamedTuple):
    """The storage of one tensor of the state."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: str  # "dense", "mask" or "same"
    same: str | None


def encode(state: Mapping[str, Tensor]) -> Contents:
    """Return what a file of these dense tensors holds.

    Raises:
        ValueError: a name that is also that of another tensor's mask or values.
    """
    stored: dict[str, Tensor] = {}
    index: list[list[Any]] = []
    first: dict[Any, str] = {}
    for name, tensor in state.items():
        shape, dtype = list(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        same = first.setdefault((*_memory(tensor), dtype, *shape), name)
        if same != name and tensor.numel():
            index.append([name, shape, dtype, "same", same])
            continue
        parts = _compressed(name, tensor)
        index.append([name, shape, dtype, "dense" if name in parts else "mask", None])
        if clash := [key for key in parts if key in stored or (key in state and key != name)]:
            raise ValueError(f"save_sparse: {clash[0]!r} is the name of two tensors; rename one")
        stored |= parts
    tensors = json.dumps(index)
    metadata = {"format": FORMAT, "version": VERSION, "tensors": tensors, "digest": _digest(tensors, stored)}
    return Contents(stored, metadata)


def read_index(contents: Contents) -> dict[str, Entry]:
    """Return the entries of a file by name, all of whose sizes fit what is stored.

    Nothing is allocated on the word of the file: an entry has at most eight elements for each byte of its mask.

    Raises:
        ValueError: another format or version, a digest that differs, or an entry that does not fit; the message says
            which.
    """
    stored, metadata = contents
    if metadata.get("format") != FORMAT:
        raise ValueError("it is a safetensors file of another program")
    if metadata.get("version") != VERSION:
        raise ValueError(f"it has version {metadata.get('version')!r} of the format, and this program reads {VERSION}")
    if metadata.get("digest") != _digest(metadata.get("tensors", ""), stored):
        raise ValueError("it was changed after it was written: its digest differs")
    try:
        entries = {
            str(name): Entry(tuple(shape), _DTYPES[dtype], how, same)
            for name, shape, dtype, how, same in json.loads(metadata["tensors"])
        }
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"its list of tensors cannot be read: {error}") from error
    before: dict[str, Entry] = {}
    for name, entry in entries.items():
        if why := _why_unfit(name, entry, before, stored):
            raise ValueError(f"{name}: {why}")
        before[name] = entry
    return entries


def decode(stored: Mapping[str, Tensor], entries: Mapping[str, Entry]) -> dict[str, Tensor]:
    """Return the tensors of a file whose index was read; those that shared their memory do so again."""
    state: dict[str, Tensor] = {}
    for name, entry in entries.items():
        if entry.stored == "same":
            assert entry.same is not None
            state[name] = state[entry.same]
        elif entry.stored == "dense":
            state[name] = stored[name].clone()
        else:
            values = stored[f"{name}:values"]
            bits = _BITS[values.element_size()]
            dense = torch.zeros(math.prod(entry.shape), dtype=bits)
            dense[_kept(stored[f"{name}:mask"], dense.numel())] = values.view(bits)
            state[name] = dense.view(entry.dtype).view(entry.shape)
    return state


def _compressed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return what is stored of a tensor: the smaller of both ways."""
    # A copy, for safetensors refuses tensors that share memory.
    dense = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format).resolve_conj().resolve_neg()
    bits = _BITS.get(dense.element_size())
    if bits is None:  # complex128
        return {name: dense}
    flat = dense.view(-1).view(bits)
    kept = flat != 0
    mask = torch.from_numpy(np.packbits(kept.numpy(), bitorder="little"))
    values = flat[kept].view(dense.dtype)
    if mask.nbytes + values.nbytes + _ENTRY > dense.nbytes:
        return {name: dense}
    return {f"{name}:mask": mask, f"{name}:values": values}


def _kept(mask: Tensor, count: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(mask.numpy(), count=count, bitorder="little").view(bool))


def _why_unfit(name: str, entry: Entry, before: Mapping[str, Entry], stored: Mapping[str, Tensor]) -> str | None:
    if not all(type(size) is int and size >= 0 for size in entry.shape) or _too_large(entry.shape):
        return f"its shape is {reprlib.repr(entry.shape)}"
    if entry.stored == "same":
        other = before.get(str(entry.same))
        if other is None or other.stored == "same":
            return f"it refers to {entry.same!r}, which is not stored before it"
        return None if (other.shape, other.dtype) == (entry.shape, entry.dtype) else f"it differs from {entry.same}"
    if entry.stored == "dense":
        found = stored.get(name)
        fits = found is not None and tuple(found.shape) == entry.shape and found.dtype == entry.dtype
        return None if fits else "it is not stored with the shape and dtype that are listed"
    mask, values = stored.get(f"{name}:mask"), stored.get(f"{name}:values")
    if entry.stored != "mask" or mask is None or values is None or mask.dtype != torch.uint8:
        return "its mask or its values are not stored"
    count = math.prod(entry.shape)
    if mask.shape != ((count + 7) // 8,) or values.dim() != 1 or values.dtype != entry.dtype:
        return f"a mask of {mask.numel()} bytes and {values.numel()} values of {values.dtype} do not fit its shape"
    if int(_kept(mask, count).sum()) != len(values):
        return f"its mask does not keep {len(values)} weights"
    return None


def _too_large(shape: tuple[int, ...]) -> bool:
    return len(shape) > 64 or math.prod(max(1, size) for size in shape) >= 1 << 60


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.device, tensor.data_ptr(), tensor.stride(), tensor.is_conj(), tensor.is_neg()


def _digest(tensors: str, stored: Mapping[str, Tensor]) -> str:
    return json_digest({"tensors": tensors, "stored": {name: tensor_digest(t) for name, t in stored.items()}})
