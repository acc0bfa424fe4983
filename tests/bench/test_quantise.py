"""The page on pruning with quantisation: what each quantiser does to zeros and to values, and the table."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from bench import quantise
from stochprune import data, masks, models, scores

pytestmark = pytest.mark.filterwarnings("ignore")  # torch announces that torch.ao moves to another package


@pytest.fixture
def network() -> nn.Sequential:
    model = models.mlp((20, 16, 5), seed=0)
    return masks.apply(model, masks.from_scores(scores.magnitude(model), 0.75))


def quantisers(x):
    return {
        "layer": lambda model: quantise.dynamic(model, quantise.ao.default_dynamic_qconfig),
        "output": lambda model: quantise.dynamic(model, quantise.ao.per_channel_dynamic_qconfig),
        "static": lambda model: quantise.static(model, x),
    }


@pytest.mark.parametrize("name", ["layer", "output", "static"])
def test_eight_bits_keep_zeros_and_nearly_the_outputs(network, name):
    x = torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
    quantised = quantisers(x)[name](network)
    quantise.check_zeros(network, quantised)
    found = quantise.integers(quantised)
    assert [w.shape for w in found] == [(16, 20), (5, 16)] and all(w.dtype == torch.int8 for w in found)
    expected = network(x)
    assert 0 < (quantised(x) - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_pruned_weight_that_comes_back_is_found(network):
    quantised = quantisers(None)["layer"](network)
    with torch.no_grad():
        network.fc1.weight[quantise.integers(quantised)[0] != 0] = 0
    with pytest.raises(AssertionError):
        quantise.check_zeros(network, quantised)


@pytest.mark.parametrize("bits", [4, 3])
def test_rounding_by_hand(network, bits):
    with torch.no_grad():
        network.fc2.weight[0] = 0  # a unit of which nothing is kept
    top = 2 ** (bits - 1) - 1
    found = quantise.rounded(network, bits).fc2.weight
    for before, after in zip(network.fc2.weight, found, strict=True):
        scale = before.abs().max() / top
        expected = (before / scale).round() * scale if scale > 0 else before
        torch.testing.assert_close(after, expected)
        assert len(after.unique()) <= 2 * top + 1
    assert not bool(found[network.fc2.weight == 0].any())


def test_sparse_weights_compress():
    dense = torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    sparse = dense * (dense > 1.5)
    assert quantise.kilobytes([sparse]) < 0.2 * quantise.kilobytes([dense]) < 0.2 * 41


def test_one_network_and_its_table():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [quantise.measure(data.digits(), sparsity, 0, 2) for sparsity in (0.0, 0.9)]
    assert all(0 < row[name] < 60 for row in rows for name in ("float32", "static", "3 bits"))
    assert rows[0]["float32, kB"] > 3 * rows[1]["float32, kB"] > 3 * rows[1]["8 bits, kB"]
    text = quantise.page_table(rows)
    assert f"| 90 % | {rows[1]['float32']:.2f} |" in text and text.count("\n") == 3
