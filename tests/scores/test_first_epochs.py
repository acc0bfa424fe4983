"""K-starts and dissipating gradients against training by torch's own SGD."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from stochprune import masks, scores


def train(model, batches, epochs, lr, momentum, mask=None):
    """A trained copy and the sums of the absolute gradients of its prunable weights."""
    network = copy.deepcopy(model)
    names = list(scores.prunable_weights(network))
    if mask is not None:
        masks.apply(network, mask)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=momentum)
    slopes = dict.fromkeys(names, 0.0)
    for x, y in [*batches] * epochs:
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        for name in names:
            slopes[name] = slopes[name] + network.get_parameter(name).grad.abs()
        optimizer.step()
        if mask is not None:
            masks.apply(network, mask)
    return network, slopes


def test_dissipating_gradients_is_the_relative_movement(mlp):
    model, batches = mlp
    before = copy.deepcopy(model.state_dict())
    result = scores.dissipating_gradients(model, F.cross_entropy, iter(batches), epochs=2, lr=0.2, momentum=0.5)
    trained, _ = train(model, batches, 2, 0.2, 0.5)
    for name, score in result.items():
        start = before[name]
        assert torch.allclose(score, (trained.get_parameter(name) - start).abs() / start.abs(), rtol=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_weight_that_starts_at_zero_and_moves_is_kept(mlp):
    model, batches = mlp
    with torch.no_grad():
        model.fc1.weight[0, 0] = 0
    score = scores.dissipating_gradients(model, F.cross_entropy, batches)["fc1.weight"]
    assert score.argmax() == 0 and bool(score.isfinite().all())


@pytest.mark.parametrize("fitness", ["magnitude", "gradient", "both"])
def test_the_fittest_of_the_starts_is_chosen(mlp, fitness):
    model, batches = mlp
    options = {"sparsity": 0.5, "starts": 4, "epochs": 2, "lr": 0.2, "momentum": 0.5, "seed": 3}
    result = scores.k_starts(model, F.cross_entropy, iter(batches), fitness=fitness, **options)
    found = {}
    for number in range(4):
        only = scores.k_starts(model, F.cross_entropy, batches, fitness=fitness, **{**options, "starts": number + 1})
        found[tuple(only["fc1.weight"].flatten().tolist())] = only
    assert any(torch.equal(result["fc1.weight"], only["fc1.weight"]) for only in found.values())

    def fit(candidate):
        mask = masks.from_scores(candidate, 0.5)
        network, slopes = train(model, batches, 2, 0.2, 0.5, mask)
        total = 0.0
        for name, value in mask.items():
            size = network.get_parameter(name).abs() if fitness != "gradient" else 1.0
            total += (size * (slopes[name] if fitness != "magnitude" else 1.0) * value).sum().item()
        return total

    fits = [fit(only) for only in found.values()]  # each better than the one before, and the last is the result
    assert fits == sorted(fits) and fit(result) == pytest.approx(fits[-1])
    assert torch.equal(result["fc1.weight"], list(found.values())[-1]["fc1.weight"])


def test_bad_input_is_named(mlp):
    model, batches = mlp
    for name in ("k_starts", "dissipating_gradients"):
        with pytest.raises(ValueError, match=rf"{name} .*loss_fn.*batches"):
            scores.by_name(name)(model)
        with pytest.raises(ValueError, match=r"epochs.*got 0"):
            scores.by_name(name)(model, F.cross_entropy, batches, epochs=0)
    with pytest.raises(ValueError, match=r"fitness.*got 'age'"):
        scores.k_starts(model, F.cross_entropy, batches, fitness="age")
    with pytest.raises(ValueError, match=r"\b2 starts .*lr.* 1e"):
        scores.k_starts(model, lambda output, _: output.square().mean() ** 2, batches, starts=2, lr=1e150)
