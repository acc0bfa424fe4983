"""MACKO's format: the matrices come back, and the layout is that of its own compressor, written here as a loop."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from torch import nn

import stochprune as sp
from stochprune.language_models import export_macko, macko_compress, macko_decompress


def by_hand(matrix):
    """Values, distances and row starts, one weight after the other."""
    values, deltas, starts = [], [], [0]
    for row in matrix.tolist():
        zeros, last = 0, len(values)
        for value in row:
            if value or zeros == 15:
                values.append(value)
                deltas.append(zeros)
                zeros = 0
                last = len(values) if value else last
            else:
                zeros += 1
        del values[last:], deltas[last:]
        starts.append(last)
    filling = [0] * (-len(values) % 8)
    values, deltas = values + filling, deltas + filling
    return values, [low + 16 * high for low, high in zip(deltas[::2], deltas[1::2], strict=True)], starts


@pytest.mark.parametrize("density", [0.0, 0.01, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(7, 100), (1, 16), (3, 1), (5, 33)])
def test_the_layout_and_the_way_back(density, shape, generator):
    matrix = torch.randn(shape, generator=generator).half()
    matrix[torch.rand(shape, generator=generator) >= density] = 0
    found = macko_compress(matrix)
    values, deltas, starts = by_hand(matrix)
    assert found.values.tolist() == values and found.deltas.tolist() == deltas
    assert found.row_indices.tolist() == starts and found[3:] == shape
    assert [tensor.dtype for tensor in found[:3]] == [torch.float16, torch.uint8, torch.int32]
    assert torch.equal(macko_decompress(found), matrix)


@pytest.mark.parametrize("zeros", [14, 15, 16, 17, 31, 32, 33])
def test_long_gaps(zeros):
    matrix = torch.zeros(2, 40)
    matrix[:, 3], matrix[:, 4 + zeros] = 1, 2
    assert torch.equal(macko_decompress(macko_compress(matrix)), matrix.half())
    assert macko_compress(matrix).values.tolist() == by_hand(matrix)[0]


def test_a_model(tmp_path, generator):
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    sp.convert(model, sp.masks.from_scores(sp.scores.magnitude(model, include="0.*"), 0.5))
    sp.harden(model)
    shares = export_macko(model, tmp_path / "model.safetensors")
    assert list(shares) == ["0.weight"] and shares["0.weight"] == pytest.approx(0.5 * 1.25, abs=0.05)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {"0.c_0", "0.c_1", "0.c_2", "0.bias", "2.weight", "2.bias"}
        assert file.metadata()["0.shape"] == "32 64"
        expected = macko_compress(model[0].weight.detach())
        assert all(torch.equal(file.get_tensor(f"0.c_{i}"), expected[i]) for i in range(3))


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"weight .*\(3,\)"):
        macko_compress(torch.zeros(3))
    with pytest.raises(ValueError, match="float16"):
        macko_compress(torch.full((2, 2), 1e6))
    with torch.random.fork_rng(), pytest.raises(ValueError, match="export_macko"):
        export_macko(nn.Linear(2, 2), tmp_path / "x")
