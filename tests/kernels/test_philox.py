"""The device functions that draw bits, against the contract's vectors and its slow reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from stochprune import rng
from stochprune.kernels.philox import load_key, philox, uniforms

VECTORS = json.loads((Path(__file__).parents[1] / "mask_vectors.json").read_text())


@triton.jit
def words_kernel(counter_ptr, key_ptr, out_ptr, ROUNDS: tl.constexpr):
    c0, c1 = tl.load(counter_ptr).to(tl.uint32), tl.load(counter_ptr + 1).to(tl.uint32)
    c2, c3 = tl.load(counter_ptr + 2).to(tl.uint32), tl.load(counter_ptr + 3).to(tl.uint32)
    k0, k1 = tl.load(key_ptr).to(tl.uint32), tl.load(key_ptr + 1).to(tl.uint32)
    w0, w1, w2, w3 = philox(c0, c1, c2, c3, k0, k1, ROUNDS)
    tl.store(out_ptr, w0.to(tl.int64))
    tl.store(out_ptr + 1, w1.to(tl.int64))
    tl.store(out_ptr + 2, w2.to(tl.int64))
    tl.store(out_ptr + 3, w3.to(tl.int64))


@triton.jit
def uniforms_kernel(out_ptr, seed_ptr, draw_ptr, row, group, stream, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    k0, k1 = load_key(seed_ptr)
    u = uniforms(row + tl.arange(0, ROWS), group, k0, k1, tl.load(draw_ptr), stream, GROUPS)
    at = tl.arange(0, ROWS)[:, None] * (64 * GROUPS) + tl.arange(0, 64 * GROUPS)[None, :]
    tl.store(out_ptr + at, u.to(tl.int32))


@pytest.mark.parametrize("case", VECTORS["philox4x32"], ids=lambda case: f"{case['rounds']}-{case['counter'][0]}")
def test_words_are_those_of_random123(case: dict, device: torch.device) -> None:
    counter, key, words = ([int(word, 16) for word in case[name]] for name in ("counter", "key", "words"))
    out = torch.zeros(4, dtype=torch.int64, device=device)
    words_kernel[(1,)](torch.tensor(counter, device=device), torch.tensor(key, device=device), out, case["rounds"])
    assert out.tolist() == words


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("seed, draw, stream", [(0, 0, 0), (2**64 - 1, 2**32 - 1, 2**31 - 1), (2**40 + 3, 7, 123)])
@pytest.mark.parametrize("row, group", [(0, 0), (2**32 - 8, 2**28 - 4)])
def test_uniforms_are_those_of_the_reference(
    groups: int, seed: int, draw: int, stream: int, row: int, group: int, device: torch.device
) -> None:
    seeds, draws = torch.tensor([rng.as_int64(seed)], device=device), torch.tensor([draw], device=device)
    out = torch.zeros(8, 64 * groups, dtype=torch.int32, device=device)
    uniforms_kernel[(1,)](out, seeds, draws, row, group, stream, 8, groups)
    at = {"row_offset": row, "col_offset": 64 * group}
    expected = rng.uniform16(8, 64 * groups, seed=seed, draw=draw, stream=stream, **at)
    assert torch.equal(out.cpu(), expected)
