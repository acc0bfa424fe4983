"""SynFlow: closed form, conservation, rounds."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from stochprune import masks, models, scores


def test_closed_form_of_two_layers():
    model = models.mlp((4, 5, 3), seed=0)
    a, b = model.fc1.weight.detach().double().abs(), model.fc2.weight.detach().double().abs()
    result = scores.synflow(model, rounds=1, input_shape=(4,))
    # R = sum_k sum_j b_kj sum_i a_ji, biases being 0
    assert torch.allclose(result["fc1.weight"], a * b.sum(dim=0).unsqueeze(1), rtol=1e-12)
    assert torch.allclose(result["fc2.weight"], b * a.sum(dim=1), rtol=1e-12)
    assert result["fc1.weight"].dtype == torch.float64 and model.fc1.weight.dtype == torch.float32


@pytest.mark.parametrize("rounds", [1, 7])
def test_flow_is_conserved_by_layer_and_by_unit(rounds):
    result = scores.synflow(models.mlp((9, 8, 7, 6), seed=0), rounds=rounds, sparsity=0.8, input_shape=(9,))
    sums = [score.sum().item() for score in result.values()]
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-12) and sums[0] > 0
    for before, after in (("fc1.weight", "fc2.weight"), ("fc2.weight", "fc3.weight")):
        assert torch.allclose(result[before].sum(dim=1), result[after].sum(dim=0), rtol=1e-12)  # in = out of each unit


def test_rounds_prune_the_same_share_of_what_is_left():
    model, sparsity, rounds = models.mlp((9, 8, 7), seed=0), 0.75, 4
    by_hand = copy.deepcopy(model)
    for t in range(1, rounds):
        flow = scores.synflow(by_hand, rounds=1, input_shape=(9,))
        chosen = masks.from_scores(flow, 1 - (1 - sparsity) ** (t / rounds), allow_empty=True)
        masks.apply(by_hand, chosen)
    expected = scores.synflow(by_hand, rounds=1, input_shape=(9,))
    result = scores.synflow(model, rounds=rounds, sparsity=sparsity, input_shape=(9,))
    assert all(torch.equal(result[name], expected[name]) for name in expected)
    assert not torch.equal(result["fc1.weight"], scores.synflow(model, rounds=1, input_shape=(9,))["fc1.weight"])


def test_many_rounds_avoid_the_collapse_of_a_layer():
    """One round at 97 % empties a layer of this bottleneck; a hundred do not (the point of the paper)."""
    model = models.mlp((60, 60, 2, 60, 60), seed=0)
    kept = {}
    for rounds in (1, 100):
        result = scores.synflow(model, rounds=rounds, sparsity=0.99, input_shape=(60,))
        mask = masks.from_scores(result, 0.99, allow_empty=True)
        kept[rounds] = min(int(value.sum()) for value in mask.values())
    assert kept[1] < kept[100] and kept[100] > 0


def test_batch_normalisation_is_in_evaluation_mode_and_left_alone():
    model = nn.Sequential(models.mlp((4, 5), seed=0), nn.BatchNorm1d(5), models.mlp((5, 3), seed=1)).train()
    with torch.no_grad():
        model[1].weight.fill_(-2.0)
        model[1].running_var.fill_(4.0 - model[1].eps)
    before = copy.deepcopy(model.state_dict())
    a, b = (model[i].fc1.weight.detach().double().abs() for i in (0, 2))
    batches = iter([(torch.full((7, 4), torch.nan), None)])  # the shape counts, not the values
    result = scores.synflow(model, None, batches, rounds=1)
    assert torch.allclose(result["0.fc1.weight"], a * b.sum(dim=0).unsqueeze(1), rtol=1e-6)  # |-2| / sqrt(4) = 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and model[1].training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "synflow .*input_shape.*batches"),
        ({"batches": []}, "batches"),
        ({"input_shape": (4,), "rounds": 0}, "rounds.*got 0"),
        ({"input_shape": (4,), "sparsity": 1.0}, "sparsity.*got 1.0"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        scores.synflow(models.mlp((4, 5), seed=0), **options)


def test_integer_inputs_are_refused():
    with pytest.raises(ValueError, match=r"synflow.*torch\.int64"):
        scores.synflow(models.mlp((2, 2), seed=0), None, [(torch.zeros(1, 2, dtype=torch.int64), None)])


class Returning(nn.Module):
    """A network whose forward wraps its outputs."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.inner, self.wrap = models.mlp((4, 5, 3), seed=1), wrap

    def forward(self, x):
        return self.wrap(self.inner(x))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: {"logits": y},
        lambda y: {"loss": y.mean(), "logits": y},
        lambda y: {"loss": None, "logits": y, "hidden": y * 0},
        lambda y: (y, None),
        lambda y: [None, y],
    ],
)
def test_outputs_in_mappings_and_tuples(wrap):
    plain, wrapped = (scores.synflow(Returning(w), input_shape=(4,)) for w in (lambda y: y, wrap))
    assert all(torch.equal(plain[name], wrapped[name]) for name in plain)


@pytest.mark.parametrize("wrap", [lambda y: {}, lambda y: object(), lambda y: (None,)])
def test_outputs_without_a_tensor_are_named(wrap):
    with pytest.raises(TypeError, match="synflow: the model must return a tensor"):
        scores.synflow(Returning(wrap), input_shape=(4,))
