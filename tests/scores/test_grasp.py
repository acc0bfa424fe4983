"""GraSP against finite differences of half the squared norm of the gradient."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from stochprune import scores


def half_squared_norm(model, batches, temperature):
    """|g|^2 / 2, g the gradient by all prunable weights of the mean loss over all examples, by plain autograd."""
    examples = sum(len(x) for x, _ in batches)
    loss = sum(len(x) / examples * F.cross_entropy(model(x) / temperature, y) for x, y in batches)
    weights = list(scores.prunable_weights(model).values())
    return sum(g.square().sum().item() for g in torch.autograd.grad(loss, weights)) / 2


@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_score_is_the_change_of_the_flow_of_gradients(smooth, derivative, temperature):
    model, batches = smooth
    model.eval()
    result = scores.grasp(model, F.cross_entropy, batches, temperature=temperature)
    absolute = scores.grasp(model, F.cross_entropy, iter(batches), temperature=temperature, absolute=True)
    for name, weight in scores.prunable_weights(model).items():
        with torch.enable_grad():
            numeric = torch.tensor(
                [
                    derivative(lambda: _flow(model, batches, temperature), weight, i, 1e-4)
                    for i in range(weight.numel())
                ],
                dtype=torch.float64,
            ).view(weight.shape)
        assert torch.allclose(result[name], weight.detach() * numeric, rtol=1e-5, atol=1e-7 / temperature**2)
        assert torch.equal(absolute[name], result[name].abs())
    assert any(bool((value < 0).any()) and bool((value > 0).any()) for value in result.values())


def _flow(model, batches, temperature):
    with torch.enable_grad():
        return half_squared_norm(model, batches, temperature)


def test_the_top_of_the_score_keeps_the_flow(mlp):
    """The sign: without the lowest score the gradient's norm falls less than without the highest."""
    model, batches = mlp
    result = scores.grasp(model, F.cross_entropy, batches, temperature=1.0)["fc1.weight"].flatten()
    flows = []
    for index in (int(result.argmin()), int(result.argmax())):
        without = copy.deepcopy(model)
        with torch.no_grad():
            without.fc1.weight.view(-1)[index] *= 0.99
        flows.append(half_squared_norm(without, batches, 1.0))
    assert flows[0] > flows[1]


def test_bad_input_is_named(mlp):
    model, batches = mlp
    with pytest.raises(ValueError, match=r"grasp .*loss_fn.*batches"):
        scores.grasp(model)
    with pytest.raises(ValueError, match=r"temperature.*got 0\.0"):
        scores.grasp(model, F.cross_entropy, batches, temperature=0.0)


def test_outputs_that_the_temperature_cannot_divide_are_named(mlp):
    class Named(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return {"logits": self.inner(x)}

    def loss(outputs, y):
        return F.cross_entropy(outputs["logits"], y)

    model, batches = mlp
    with pytest.raises(ValueError, match=r"grasp: batches: temperature 200 .*logits.*temperature=1"):
        scores.grasp(Named(model), loss, batches)
    found = scores.grasp(Named(model), loss, batches, temperature=1)
    plain = scores.grasp(model, F.cross_entropy, batches, temperature=1)
    assert all(torch.equal(found[f"inner.{name}"], plain[name]) for name in plain)
