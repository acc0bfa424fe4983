"""harden over all layer types: pruned weights, ties, warnings and NaN."""

from __future__ import annotations

import copy
import itertools
import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import stochprune as sp
from stochprune.nn import MaskedLinear, add_lora, merge_lora
from tests.nn.zoo import ZOO, make, numbers


def network(sizes=(8, 6, 4, 3), keep=0.95):
    return nn.Sequential(
        *(MaskedLinear(k, n, keep=keep, seed=1, stream=i) for i, (k, n) in enumerate(itertools.pairwise(sizes)))
    )


def zeros(model):
    return [int((layer.weight == 0).sum()) for layer in model]


def test_nothing_pruned_is_said_with_the_numbers():
    with pytest.warns(UserWarning, match=r"\b0 of 84 .*0\.9500.*sparsity") as caught:
        model = sp.harden(network())
    assert caught[0].filename == __file__ and zeros(model) == [0, 0, 0]
    with pytest.warns(UserWarning, match=r"sparsity.*0\.001.*global"):
        sp.harden(network(), 0.001)
    model = network()
    with torch.no_grad():
        model[1].mask_logits[0, 0] = -1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert zeros(sp.harden(model)) == [0, 1, 0]
        sp.harden(network(), 0.0)  # as asked for
        sp.harden(network(), 0.5)


def test_a_layer_without_weights_is_hardened():
    with pytest.warns(UserWarning, match="0 of 0"):
        assert sp.harden(MaskedLinear(0, 2)).weight.shape == (2, 0)


class SharesItsBias(nn.Module):
    """A head whose bias the model holds under a second name, as in BERT of transformers."""

    def __init__(self):
        super().__init__()
        self.head, self.tail = (nn.utils.skip_init(nn.Linear, 4, 4) for _ in range(2))
        for parameter in self.parameters():
            nn.init.ones_(parameter)
        self.bias = self.tail.bias = self.head.bias


@pytest.mark.parametrize("plain", [lambda m: sp.harden(sp.convert(m), 0.5), lambda m: merge_lora(add_lora(m, 2))])
def test_a_bias_that_modules_share_stays_shared(plain):
    model = plain(SharesItsBias())
    assert model.bias is model.head.bias is model.tail.bias


class ReadsTheWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network((4, 4, 4))
        self.twin = copy.copy(self.inner[1])  # another name of the weight, which never runs

    def forward(self, x):
        return nn.functional.linear(self.inner[1](x), self.inner[0].weight)


def test_a_weight_that_never_ran_under_a_mask_is_named():
    model = ReadsTheWeight()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sp.harden(copy.deepcopy(model), 0.5)  # nothing ran
        model(numbers(2, 4))
        frozen = copy.deepcopy(model)
        frozen.inner[0].sample = False
        sp.harden(frozen, 0.5)
    with pytest.warns(UserWarning, match=r"harden: .*inner\.0\.weight") as caught:
        sp.harden(model, 0.5)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("scope", ["global", "layer", "row"])
def test_equal_probabilities_are_cut_by_magnitude(scope):
    """Barely trained logits are equal: cut by the order of names, late layers lost all of their weights."""
    model = network()
    expected = sp.masks.from_scores({f"{i}.weight": m.weight.detach().abs() for i, m in enumerate(model)}, 0.5, scope)
    for i, layer in enumerate(sp.harden(model, 0.5, scope)):
        assert torch.equal(layer.weight != 0, expected[f"{i}.weight"])


def test_equal_blocks_are_cut_by_mean_magnitude_and_the_rest_evenly():
    layer = sp.nn.StructuredMaskedLinear(4, 4, structure="2x2", bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 3, 1, 1], [3, 3, 1, 1], [2, 2, 9, 0.1], [2, 2, 0.1, 0.1]]))
    kept = sp.harden(layer, 0.5).weight != 0
    assert kept.tolist() == [[True, True, False, False]] * 2 + [[False, False, True, True]] * 2
    model = network()
    for layer in model:
        nn.init.ones_(layer.weight)
    assert zeros(sp.harden(model, 0.5)) == [24, 12, 6]


def test_a_layer_that_a_global_cut_empties_is_named_with_the_way_out():
    model = network()
    with torch.no_grad():
        model[2].mask_logits.fill_(1.0)
    before = model[0]
    with pytest.raises(ValueError, match=r"harden: .*2\.weight.* logit, 1, .*scope='layer'"):
        sp.harden(model, 0.5)
    assert model[0] is before
    assert zeros(sp.harden(model, 0.5, "layer")) == [24, 12, 6]
    with pytest.raises(ValueError, match=r"12 weights of a layer.*\b0\b"):
        sp.harden(network(), 0.97, "layer")


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"scope": "bogus"}, ValueError, "'bogus'"),
        ({"scope": None, "sparsity": 0.5}, ValueError, "None"),
        ({"sparsity": "0.5"}, TypeError, "'0.5'"),
        ({"sparsity": True}, TypeError, "True"),
        ({"sparsity": torch.tensor(0.5)}, TypeError, "tensor"),
        ({"sparsity": float("nan")}, ValueError, "nan"),
        ({"sparsity": 1.0}, ValueError, "1.0"),
        ({"sparsity": -0.1}, ValueError, "-0.1"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(options, error, named):
    model = network()
    with pytest.raises(error, match=rf"harden: .*{re.escape(named)}"):
        sp.harden(model, **options)
    assert all(isinstance(layer, MaskedLinear) for layer in model)


MASKED = [name for name in ZOO if not name.startswith(("random", "spike"))]  # the others have no threshold


@pytest.mark.parametrize("estimator", ["straight_through", "hard_concrete"])
@pytest.mark.parametrize("name", MASKED)
def test_nan_logits_prune_nothing_silently(name, estimator):
    """Evaluation propagates them or refuses, and gate and harden refuse; finite logits give what the gate says."""
    model, x = make(name)
    key, layer = next(iter(sp.nn.masked_layers(model.eval()).items()))
    layer.estimator = estimator
    with torch.no_grad():
        layer.mask_logits.copy_(numbers(*layer.mask_logits.shape))
        layer.mask_logits.view(-1)[0] = 1.0
        torch.testing.assert_close(layer.thresholded_weight(), layer.unmasked_weight() * layer.gate())
        layer.mask_logits.view(-1)[0] = float("nan")
        if name.startswith("n:m"):
            with pytest.raises(ValueError, match="NaN"):
                model(x)
        else:
            assert model(x).isnan().any()
    with pytest.raises(ValueError, match="NaN"):
        layer.gate()
    if name != "gated branch":
        with pytest.raises(ValueError, match=rf"harden: 1 of \d+ mask_logits of {key} are NaN"):
            sp.harden(copy.deepcopy(model), None if layer.own_sparsity else 0.5)


def test_rows_are_outputs_where_the_weight_is_transposed():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    with torch.device("meta"):
        dense = conv1d(6, 4)
    dense.weight, dense.bias = nn.Parameter(torch.ones(4, 6)), nn.Parameter(torch.zeros(6))
    layer = sp.nn.MaskedTransposedLinear.from_dense(dense, 0.6)
    with torch.no_grad():
        layer.mask_logits.copy_(numbers(4, 6))
    kept = sp.harden(layer, 0.5, "row").weight.ne(0)
    assert kept.sum(0).tolist() == [2] * 6 and kept.sum(1).tolist() != [3] * 4


def _prune(layer):
    prune.l1_unstructured(layer, "weight", 0.5)


@pytest.mark.parametrize("reparametrise", [weight_norm, nn.utils.weight_norm, _prune])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_computed_weights_are_refused_with_the_way_out(reparametrise):
    model = network()
    reparametrise(model[1])
    with pytest.raises(ValueError, match=r"harden: 1\.weight "):
        sp.harden(model, 0.5)
    assert isinstance(model[0], MaskedLinear)
