"""The executable reference against the published golden vectors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stochprune import rng

VECTORS = json.loads((Path(__file__).parent / "mask_vectors.json").read_text())


@pytest.mark.parametrize("case", VECTORS["philox4x32"], ids=lambda c: f"{c['rounds']}-{c['counter'][0]}")
def test_philox_words(case):
    counter = tuple(torch.tensor(int(word, 16)) for word in case["counter"])
    key = tuple(int(word, 16) for word in case["key"])
    words = rng.philox4x32(counter, key, rounds=case["rounds"])
    assert [int(w) for w in words] == [int(w, 16) for w in case["words"]]


@pytest.mark.parametrize("case", VECTORS["uniform16"], ids=lambda c: f"seed{c['seed']}")
def test_uniform16(case):
    address = {name: case[name] for name in ("seed", "draw", "stream", "row_offset", "col_offset")}
    u = rng.uniform16(case["rows"], case["cols"], **address)
    assert u.tolist() == case["values"]


def test_keep_digest():
    case = VECTORS["keep"]
    threshold = (520 * torch.arange(case["rows"])).unsqueeze(1)
    u = rng.uniform16(case["rows"], case["cols"], seed=case["seed"], draw=case["draw"], stream=case["stream"])
    keep = (u & 0x7FFF) < threshold
    assert keep.sum(1).tolist() == case["kept_per_row"]
    digests = {
        hashlib.sha256(np.packbits(keep.numpy(), axis=axis, bitorder=order).tobytes()).hexdigest()
        for axis in (None, 1)
        for order in ("little", "big")
    }
    assert case["sha256_of_packed_bits"] in digests


@pytest.mark.parametrize("name, value", VECTORS["stream"].items())
def test_stream(name, value):
    assert rng.stream(name) == value


def test_streams_of_a_collision_are_rehashed(monkeypatch):
    monkeypatch.setattr(rng, "_digest", lambda name: 7 if name in ("a", "b", "b#1") else 100 + len(name))
    assert rng.streams(["b", "a", "c"]) == {"a": 7, "b": 103, "c": 101}


@given(
    row=st.integers(0, 2**32 - 9),
    col=st.integers(0, 2**34 - 200),
    rows=st.integers(1, 8),
    cols=st.integers(1, 150),
    seed=st.integers(0, 2**64 - 1),
    draw=st.integers(0, 2**32 - 1),
)
def test_a_shard_sees_the_whole_matrix_bits(row, col, rows, cols, seed, draw):
    whole = rng.uniform16(rows, cols, seed=seed, draw=draw, stream=5, row_offset=row, col_offset=col)
    r, c = rows // 2, cols // 3
    at = {"row_offset": row + r, "col_offset": col + c}
    part = rng.uniform16(rows - r, cols - c, seed=seed, draw=draw, stream=5, **at)
    assert torch.equal(part, whole[r:, c:])


def test_tensors_and_numbers_give_the_same_address():
    seed = 2**64 - 12345
    as_tensors = {"seed": torch.tensor([rng.as_int64(seed)]), "draw": torch.tensor([9])}
    assert torch.equal(rng.uniform16(3, 70, seed=seed, draw=9, stream=1), rng.uniform16(3, 70, stream=1, **as_tensors))


def test_thresholds_are_rounded_and_clamped():
    logits = torch.tensor([-1e9, -12.0, 0.0, 1.0, 12.0, float("inf"), float("-inf")], dtype=torch.float64)
    expected = [1, 1, 16384, int(32768 / (1 + np.exp(-1.0)) + 0.5), 32767, 32767, 1]
    t = rng.threshold_from_logits(logits)
    assert t.dtype == torch.uint16
    assert t.tolist() == expected


def test_uniforms_are_uniform():
    u = rng.uniform16(256, 4096, seed=3, draw=1, stream=2)
    counts = torch.bincount((u >> 8).flatten(), minlength=256).double()  # 4096 expected a cell
    chi2 = float(((counts - 4096) ** 2 / 4096).sum())
    assert 150 < chi2 < 380  # 255 degrees of freedom, beyond five sigma either way
    ones = torch.stack([(u >> bit) & 1 for bit in range(16)]).double().mean((1, 2))
    assert float((ones - 0.5).abs().max()) < 5 * 0.5 / 1024


@pytest.mark.parametrize(
    "arguments, word",
    [
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"draw": 2**32}, "draw"),
        ({"stream": 2**31}, "stream"),
        ({"row_offset": 2**32 - 1}, "row"),
        ({"col_offset": 2**34 - 2}, "col"),
        ({"col_offset": -1}, "col"),
    ],
)
def test_addresses_outside_the_contract_are_refused(arguments, word):
    with pytest.raises(ValueError, match=word):
        rng.uniform16(2, 3, **{"seed": 0, "draw": 0, "stream": 0, **arguments})


def _philox_by_hand(counter, key):
    """Ten lines of plain integers, independent of the implementation under test."""
    c, k = list(counter), list(key)
    for _ in range(7):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


@pytest.mark.parametrize("n, k", [(0, 0), (3, 17), (2**32 - 1, 2**34 - 1), (5, 100), (5, 116), (1, 47), (1, 63)])
def test_normals_follow_their_definition(n, k):
    seed, draw, stream = 2**63 + 12345, 2**32 - 2, 2**31 - 7
    key = (seed & 0xFFFFFFFF, seed >> 32)
    w = _philox_by_hand((((k >> 6) << 4) | (k & 15), n, draw, stream | 2**31), key)
    pair = 2 * ((k >> 5) & 1)
    p, turn = (((word >> 9) + 0.5) / 2**23 for word in w[pair : pair + 2])
    wave = np.sin if (k >> 4) & 1 else np.cos
    expected = np.sqrt(-2 * np.log(p)) * wave(2 * np.pi * turn)
    got = rng.normal(1, 1, seed=seed, draw=draw, stream=stream, row_offset=n, col_offset=k)
    assert abs(got.item() - expected) < 1e-9 * abs(expected)


def test_normals_are_standard_normal_and_independent_of_masks():
    at = {"seed": 11, "draw": 12, "stream": 13}
    z = rng.normal(400, 640, **at)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    grid = z.view(400, 10, 64)
    uniforms = rng.uniform16(400, 640, **at).double().view(400, 10, 64)
    for other in (uniforms, grid.roll(1, 0), grid.roll(16, 2), grid.square()):
        correlation = torch.corrcoef(torch.stack([grid.flatten(), other.flatten()]))[0, 1]
        assert abs(correlation) < 4 / z.numel() ** 0.5
    squares = grid.square()
    correlation = torch.corrcoef(torch.stack([squares[..., :16].flatten(), squares[..., 16:32].flatten()]))[0, 1]
    assert abs(correlation) < 4 / (z.numel() / 4) ** 0.5  # the two normals of one Box-Muller pair


def test_a_block_of_normals_is_a_block_of_the_whole():
    at = {"seed": 1, "draw": 2, "stream": 3}
    assert torch.equal(rng.normal(9, 200, **at)[4:, 70:], rng.normal(5, 130, **at, row_offset=4, col_offset=70))
