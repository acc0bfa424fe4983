"""The mask contract, version 1: which weights are kept is a pure function of five integers.

The address of a weight's mask is the run's seed, the draw (which mask), the layer's stream, and the row and column of
the weight in the whole matrix. The address determines sixteen random bits. They do not depend on the tile, thread,
device or shard that computes them, so masks are not stored::

    ctr  = ( ((k >> 6) << 3) | ((k >> 1) & 7),  n,  draw,  stream )    four uint32 words
    w    = philox4x32, 7 rounds (ctr, key = (seed low, seed high))     four uint32 words
    u    = 16 bits of word w[(k >> 4) & 3]: its low half if k is even, its high half if k is odd
    keep = (u & 0x7FFF) < T,          T = threshold in 0..32768, so P(keep) = T / 32768 exactly

Eight Philox calls serve 64 columns of a row. In the order of columns, the uniforms are word 0 of calls 0..7, then word
1 of these calls, and so on. Seven rounds is the smallest number for which Philox-4x32 passes BigCrush (Salmon, Moraes,
Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3").

Gaussian weights and noise use standard normals from other words: the top bit of the stream is set, and sixteen calls
serve 64 columns. The method of Box and Muller 1958 turns words 0 and 1 of a call into two normals, and words 2 and 3
into two more::

    ctr  = ( ((k >> 6) << 4) | (k & 15),  n,  draw,  stream | 2^31 )
    p(w) = ((w >> 9) + 1/2) / 2^23                                      exact in float32, never 0 or 1
    r, a = sqrt(-2 ln p(w[s])), 2 pi p(w[s + 1]),                       s = ((k >> 4) & 3) & 2
    e    = r cos(a) if ((k >> 4) & 1) == 0, else r sin(a)

The integers are the same on every platform. The normals agree to 1e-6 relative; the largest one is 5.8.

This module is the executable reference: slow integer arithmetic in plain PyTorch, on any device. The only other files
that may generate random bits are ``csrc/common/philox.h`` and ``kernels/philox.py``.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

LEVELS = 1 << 15
"""Thresholds count in units of 1 / LEVELS."""
ROUNDS = 7

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_U32 = 0xFFFFFFFF

SEED_LIMIT = 1 << 64
DRAW_LIMIT = 1 << 32
STREAM_LIMIT = 1 << 31
ROW_LIMIT = 1 << 32
COLUMN_LIMIT = 1 << 34


def check_address(
    op: str = "",
    *,
    seed: int | Tensor = 0,
    draw: int | Tensor = 0,
    samples: int | None = None,
    stream: int = 0,
    rows: int = 0,
    cols: int = 0,
    row_offset: int = 0,
    col_offset: int = 0,
) -> None:
    """Check the integers of an address. Every public function calls this with its arguments.

    Args:
        op: the function that error messages name.
        seed: 0 .. 2^64 - 1, or an int64 tensor of one element, whose bits are the seed.
        draw: 0 .. 2^32 - 1, or an int64 tensor: a number, or a vector of one element or more.
        samples: None, or the number of consecutive draws from ``draw`` on, which must then be one number.
        stream: 0 .. 2^31 - 1.
        rows, cols, row_offset, col_offset: of the block; it must lie inside 2^32 rows and 2^34 columns.

    Raises:
        TypeError: a value is not an integer, or a tensor is not int64.
        ValueError: an integer is outside its range. The numbers of a tensor are checked on the CPU only, because on
            other devices the check would need a synchronisation.
    """
    if isinstance(seed, Tensor):
        _check_tensor(op, "seed", seed)
        if seed.numel() != 1:
            raise ValueError(f"{_of(op)}seed must be one number, got a tensor of shape {tuple(seed.shape)}")
    else:
        _check_range(op, "seed", seed, SEED_LIMIT)
    past = 0 if samples is None else integer(op, "samples", samples) - 1
    if past < 0:
        raise ValueError(f"{_of(op)}samples must be at least 1, got {samples}; leave it out for one mask")
    if isinstance(draw, Tensor):
        _check_draws(op, draw, samples, past)
    else:
        _check_range(op, "draw", draw, DRAW_LIMIT, past)
    _check_range(op, "stream", stream, STREAM_LIMIT)
    for name, offset, count, limit in (("row", row_offset, rows, ROW_LIMIT), ("col", col_offset, cols, COLUMN_LIMIT)):
        offset, count = integer(op, f"{name}_offset", offset), integer(op, f"{name}s", count)
        if offset < 0 or count < 0 or offset + count > limit:
            power = limit.bit_length() - 1
            raise ValueError(
                f"{_of(op)}{name}_offset {offset} and {count} {name}s leave the addressable 2^{power} {name}s"
            )


def integer(op: str, name: str, value: Any) -> int:
    """Return ``value`` as an int. It may be an int or an integer of numpy; others raise ``TypeError``, as bool does."""
    if isinstance(value, int | torch.SymInt) and not isinstance(value, bool):
        return value  # type: ignore[return-value]  # torch's symbolic integers behave like integers
    if isinstance(value, bool | Tensor) or not hasattr(value, "__index__"):
        raise TypeError(f"{_of(op)}{name} must be an integer, got {value!r} ({type(value).__name__})")
    return operator.index(value)


def _of(op: str) -> str:
    return f"{op}: " if op else ""


def _check_range(op: str, name: str, value: Any, limit: int, past: int = 0) -> None:
    """Check ``value`` and the ``past`` integers after it."""
    number = integer(op, name, value)
    if not 0 <= number < limit - past:
        last = f", and samples={past + 1} counts up to {number + past}" if past and 0 <= number < limit else ""
        raise ValueError(f"{_of(op)}{name} must lie in 0 .. 2^{limit.bit_length() - 1} - 1, got {number}{last}")


def _check_tensor(op: str, name: str, value: Tensor) -> None:
    if value.dtype != torch.int64:
        raise TypeError(f"{_of(op)}{name} must be an int64 tensor or an integer, got a tensor of {value.dtype}")


def _check_draws(op: str, draw: Tensor, samples: int | None, past: int) -> None:
    _check_tensor(op, "draw", draw)
    if draw.dim() > 1 or not draw.numel():
        raise ValueError(f"{_of(op)}draw must be a number or a vector of draws, got shape {tuple(draw.shape)}")
    if samples is not None and draw.numel() != 1:
        raise ValueError(f"{_of(op)}samples={samples} counts on from one draw, got a vector of {draw.numel()}")
    if not torch.compiler.is_compiling() and type(draw) is Tensor and draw.device.type == "cpu":
        if torch._C._functorch.is_functorch_wrapped_tensor(draw):
            return
        low, high = (draw.item(),) * 2 if draw.numel() == 1 else (end.item() for end in draw.aminmax())
        _check_range(op, "draw", low if low < 0 else high, DRAW_LIMIT, past)


def philox4x32(
    counter: tuple[Tensor, ...], key: tuple[Tensor | int, Tensor | int], rounds: int = ROUNDS
) -> list[Tensor]:
    """Return the four words of Philox-4x32 on int64 tensors that hold uint32 values and are broadcast together.

    A product wraps around in int64 and loses no bits: its halves are exact after a shift and a mask.

    Raises:
        TypeError: ``counter`` is not four int64 tensors.
        ValueError: ``rounds`` is below 1.
    """
    if len(counter) != 4 or not all(isinstance(c, Tensor) and c.dtype == torch.int64 for c in counter):
        raise TypeError(f"philox4x32: counter must be four int64 tensors, got {counter!r}")
    if integer("philox4x32", "rounds", rounds) < 1:
        raise ValueError(f"philox4x32: rounds must be at least 1, got {rounds}")
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for i in range(rounds):
        if i:
            k0, k1 = (k0 + _WEYL[0]) & _U32, (k1 + _WEYL[1]) & _U32
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _U32) ^ c1 ^ k0, p1 & _U32, ((p0 >> 32) & _U32) ^ c3 ^ k1, p0 & _U32
    return list(torch.broadcast_tensors(c0, c1, c2, c3))


def as_int64(value: int) -> int:
    """Return the int64 with the bits of a uint64, for seeds in tensors.

    Raises:
        TypeError: the value is not an integer.
        ValueError: the value is outside 0 .. 2^64 - 1.
    """
    _check_range("as_int64", "value", value, SEED_LIMIT)
    value = int(value)
    return value - SEED_LIMIT if value >= SEED_LIMIT // 2 else value


def uniform16(
    rows: int,
    cols: int,
    *,
    seed: int | Tensor,
    draw: int | Tensor,
    stream: int,
    row_offset: int = 0,
    col_offset: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return the contract's sixteen random bits for each weight of a block.

    Args:
        rows, cols: shape of the block.
        seed: 0 .. 2^64 - 1, or a one-element int64 tensor with those bits.
        draw: 0 .. 2^32 - 1, or a one-element int64 tensor.
        stream: 0 .. 2^31 - 1, the layer's number.
        row_offset, col_offset: position of the block's first weight in the whole matrix.
        device: of the result. The default is the device of ``seed`` or ``draw`` if one is a tensor, else the CPU.

    Returns:
        int32 tensor [rows, cols] with values 0 .. 65535.

    Raises:
        TypeError, ValueError: an integer is outside the range of the contract; see :func:`check_address`.
    """
    n, k, d, bits = _coordinates("uniform16", rows, cols, seed, draw, stream, row_offset, col_offset, device)
    call = ((k >> 6) << 3) | ((k >> 1) & 7)
    words = philox4x32((call, n, d, torch.full_like(d, int(stream))), (bits & _U32, (bits >> 32) & _U32))
    word = torch.stack(words).gather(0, ((k >> 4) & 3).expand(1, rows, cols)).squeeze(0)  # [rows, cols]
    return ((word >> (16 * (k & 1))) & 0xFFFF).to(torch.int32)


def normal(
    rows: int,
    cols: int,
    *,
    seed: int | Tensor,
    draw: int | Tensor,
    stream: int,
    row_offset: int = 0,
    col_offset: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return the contract's standard normal for each weight of a block, independent of its mask.

    Args:
        rows, cols, seed, draw, stream, row_offset, col_offset, device: as in :func:`uniform16`.

    Returns:
        float64 tensor [rows, cols].

    Raises:
        TypeError, ValueError: an integer is outside the range of the contract; see :func:`check_address`.
    """
    n, k, d, bits = _coordinates("normal", rows, cols, seed, draw, stream, row_offset, col_offset, device)
    call = ((k >> 6) << 4) | (k & 15)
    words = philox4x32((call, n, d, torch.full_like(d, int(stream) | STREAM_LIMIT)), (bits & _U32, (bits >> 32) & _U32))
    p = ((torch.stack(words) >> 9).double() + 0.5) / (1 << 23)  # [4, rows, cols]
    second = ((k >> 5) & 1).bool()
    radius = torch.sqrt(-2 * torch.log(torch.where(second, p[2], p[0])))
    angle = 2 * math.pi * torch.where(second, p[3], p[1])
    return radius * torch.where(((k >> 4) & 1).bool(), torch.sin(angle), torch.cos(angle))


def _coordinates(
    op: str,
    rows: int,
    cols: int,
    seed: int | Tensor,
    draw: int | Tensor,
    stream: int,
    row_offset: int,
    col_offset: int,
    device: torch.device | str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Check the address; return rows [rows, 1], columns [1, cols], the draw and the bits of the seed, all int64."""
    if device is None:
        device = next((v.device for v in (seed, draw) if isinstance(v, Tensor)), torch.device("cpu"))
    elif not isinstance(device, torch.device | str):  # torch would take a number for an accelerator
        raise TypeError(f"{op}: device must be a torch.device or its name, got {device!r}")
    else:
        try:
            device = torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"{op}: device must name a device such as cpu or cuda:0, got {device!r}") from error
    check_address(
        op, seed=seed, draw=draw, stream=stream, rows=rows, cols=cols, row_offset=row_offset, col_offset=col_offset
    )
    if isinstance(draw, Tensor) and draw.numel() != 1:
        raise ValueError(f"{op}: one draw at a time, got {draw.numel()}")
    rows, cols, row_offset, col_offset = int(rows), int(cols), int(row_offset), int(col_offset)
    bits = seed.reshape(()).to(device) if isinstance(seed, Tensor) else torch.tensor(as_int64(seed), device=device)
    d = draw.reshape(()).to(device) if isinstance(draw, Tensor) else torch.tensor(int(draw), device=device)
    n = torch.arange(row_offset, row_offset + rows, device=device).unsqueeze(1)
    k = torch.arange(col_offset, col_offset + cols, device=device).unsqueeze(0)
    return n, k, d, bits


def threshold_from_logits(logits: Tensor) -> Tensor:
    """Return the keep thresholds of trained probabilities: ``clamp(floor(sigmoid(logit) * 32768 + 0.5), 1, 32767)``.

    The sigmoid is computed in float64, so that the result does not depend on the platform. NaN gives 1.

    Args:
        logits: a floating tensor of any shape.

    Returns:
        uint16 tensor of the same shape.

    Raises:
        TypeError: ``logits`` is not a dense floating tensor.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.layout != torch.strided:
        kind = f"{logits.dtype}, {logits.layout}" if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"threshold_from_logits: logits must be a dense floating tensor, got {kind}")
    scaled = torch.floor(torch.sigmoid(logits.detach().double()) * LEVELS + 0.5)
    return torch.nan_to_num(scaled, nan=1.0).clamp(1, LEVELS - 1).to(torch.int32).to(torch.uint16)


def _digest(name: str) -> int:
    raw = hashlib.blake2s(name.encode("utf-8")).digest()[:4]
    return int.from_bytes(raw, "little") & (STREAM_LIMIT - 1)


def stream(name: str) -> int:
    """Return a parameter's stream: the first four bytes of the blake2s digest of its qualified name, top bit cleared.

    Raises:
        TypeError: ``name`` is not a string.
    """
    if not isinstance(name, str):
        raise TypeError(f"stream: name must be a parameter's qualified name, got {name!r}")
    return _digest(name)


def streams(names: Iterable[str]) -> dict[str, int]:
    """Return the streams of all parameters of one model, by name.

    If two names collide, the later one in sorted order is hashed again with ``#1`` appended, then ``#2``, and so on.

    Raises:
        TypeError: ``names`` is one string, or one of them is not a string.
    """
    names = names if isinstance(names, str) else [*names]
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"streams: names must be the qualified names of a model's parameters, got {names!r}")
    taken: dict[int, str] = {}
    for name in sorted(set(names)):
        value, attempt = _digest(name), 0
        while value in taken:
            attempt += 1
            value = _digest(f"{name}#{attempt}")
        taken[value] = name
    return {name: value for value, name in taken.items()}
