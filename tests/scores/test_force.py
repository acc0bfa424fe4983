"""FORCE and iterative SNIP against rounds made by hand."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from stochprune import masks, scores


def by_hand(model, batches, kept_fractions, may_return):
    """The rounds in plain autograd: prune a copy, take the gradient of the mean loss, score."""
    weights = {name: weight.detach().clone() for name, weight in scores.prunable_weights(model).items()}
    mask = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    for kept in [*kept_fractions, None]:
        network = masks.apply(copy.deepcopy(model), mask)
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        F.cross_entropy(network(x), y).backward()
        used = weights if may_return else {name: weights[name] * mask[name] for name in weights}
        score = {name: (used[name] * network.get_parameter(name).grad).abs() for name in weights}
        if kept is not None:
            mask = masks.from_scores(score, 1 - kept, allow_empty=True)
    return score


@pytest.mark.parametrize("name", ["force", "iterative_snip"])
@pytest.mark.parametrize(
    ("schedule", "kept"), [("exponential", [0.2 ** (t / 4) for t in (1, 2, 3)]), ("linear", [0.8, 0.6, 0.4])]
)
def test_rounds(smooth, name, schedule, kept):
    model, batches = smooth
    model.eval()
    result = scores.by_name(name)(model, F.cross_entropy, iter(batches), sparsity=0.8, rounds=4, schedule=schedule)
    expected = by_hand(model, batches, kept, may_return=name == "force")
    assert all(torch.allclose(result[key], expected[key], rtol=1e-9, atol=1e-14) for key in expected)


def test_one_round_is_snip_and_only_force_lets_weights_return(mlp):
    model, batches = mlp
    snip = scores.snip(model, F.cross_entropy, batches)
    for name in ("force", "iterative_snip"):
        once = scores.by_name(name)(model, F.cross_entropy, batches, rounds=1)
        assert all(torch.equal(once[key], snip[key]) for key in snip)
    first = masks.from_scores(snip, 0.3)
    for name, returns in (("force", True), ("iterative_snip", False)):
        twice = scores.by_name(name)(model, F.cross_entropy, batches, sparsity=0.6, rounds=2, schedule="linear")
        assert any(bool(twice[key][~first[key]].any()) for key in first) == returns


def test_bad_input_is_named(mlp):
    model, batches = mlp
    for options, message in (
        ({"schedule": "cubic"}, "schedule.*got 'cubic'"),
        ({"rounds": 0}, "rounds.*got 0"),
        ({"sparsity": -0.1}, "sparsity.*got -0.1"),
    ):
        with pytest.raises(ValueError, match=message):
            scores.force(model, F.cross_entropy, batches, **options)
