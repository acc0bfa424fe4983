"""ProsPr against finite differences through training by torch's own SGD."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from stochprune import masks, scores


def loss_after_training(model, batches, steps, lr, momentum):
    """The loss on the batch after ``steps`` steps of torch.optim.SGD on a copy, one batch each."""
    network = copy.deepcopy(model)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=momentum)
    for x, y in batches[:steps]:
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
    x, y = batches[steps]
    return F.cross_entropy(network(x), y).item()


@pytest.mark.parametrize(("steps", "momentum"), [(1, 0.0), (2, 0.0), (2, 0.9)])
def test_score_is_the_derivative_through_training(smooth, derivative, steps, momentum):
    model, batches = smooth
    model.eval()
    result = scores.prospr(model, F.cross_entropy, batches, steps=steps, lr=0.5, momentum=momentum)

    def trained() -> float:
        with torch.enable_grad():
            return loss_after_training(model, batches, steps, 0.5, momentum)

    for name, weight in scores.prunable_weights(model).items():
        numeric = [derivative(trained, weight, i, 1e-5) for i in range(weight.numel())]
        # d/dc at c = 1 is w d/dw, whatever the other parameters do
        expected = (weight.detach() * torch.tensor(numeric, dtype=torch.float64).view(weight.shape)).abs()
        assert torch.allclose(result[name], expected, rtol=1e-5, atol=1e-9)


def test_momentum_is_differentiated():
    """One weight, quadratic loss: theta_2 and its derivative by hand, in which the first velocity has its own share."""
    layer = torch.nn.utils.skip_init(torch.nn.Linear, 1, 1, bias=False, dtype=torch.float64)
    torch.nn.init.constant_(layer.weight, 3.0)
    x = torch.ones(1, 1, dtype=torch.float64)
    lr, beta = 0.1, 0.9

    def half_square(output, _):  # gradient theta, Hessian 1
        return output.square().mean() / 2

    # v1 = t0; t1 = (1 - lr) t0; v2 = beta t0 + t1; t2 = t1 - lr v2 = r t0
    r = (1 - lr) - lr * (beta + 1 - lr)
    result = scores.prospr(layer, half_square, [(x, x)], steps=2, lr=lr, momentum=beta)["weight"].item()
    assert result == pytest.approx(3.0 * r * 3.0 * r, rel=1e-12)
    first = scores.prospr(layer, half_square, [(x, x)], steps=2, lr=lr, momentum=beta, first_order=True)
    assert first["weight"].item() == pytest.approx(3.0 * r * 3.0, rel=1e-12)


@pytest.mark.parametrize("first_order", [False, True])
def test_without_steps_it_is_snip_on_the_first_batch(smooth, first_order):
    model, batches = smooth
    result = scores.prospr(model, F.cross_entropy, batches, steps=0, first_order=first_order)
    snip = scores.snip(model, F.cross_entropy, batches[:1])
    assert all(torch.allclose(result[name], snip[name], rtol=1e-10, atol=1e-15) for name in snip)


def test_first_order_takes_the_gradient_at_the_end(mlp):
    model, batches = mlp
    result = scores.prospr(model, F.cross_entropy, batches, steps=2, lr=0.3, first_order=True)
    network = copy.deepcopy(model)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3, momentum=0.9)
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        if x is not batches[2][0]:
            optimizer.step()
    for name, weight in scores.prunable_weights(model).items():
        assert torch.allclose(result[name], (weight * network.get_parameter(name).grad).abs(), rtol=1e-10)


@pytest.mark.parametrize("first_order", [False, True])
def test_structured_scores_are_those_of_whole_channels(smooth, derivative, first_order):
    """A channel's factor multiplies all of its weights: its derivative is the sum of theirs, before the absolute."""
    model, batches = smooth
    model.eval()
    options = {"steps": 1, "lr": 0.2, "first_order": first_order}
    result = scores.prospr(model, F.cross_entropy, batches, structured=True, **options)
    names = list(scores.prunable_weights(model))
    assert list(result) == names[:-1]
    weight = scores.prunable_weights(model)[names[0]]
    assert result[names[0]].shape == (weight.shape[0], *[1] * (weight.dim() - 1))
    if not first_order:
        for channel in range(len(weight)):
            factor, original = torch.ones(1, dtype=torch.float64), weight.detach()[channel].clone()

            def trained(factor=factor, original=original, channel=channel) -> float:
                weight.detach()[channel] = original * factor
                with torch.enable_grad():
                    return loss_after_training(model, batches, 1, 0.2, 0.9)

            numeric = abs(derivative(trained, factor, 0, 1e-5))
            weight.detach()[channel] = original
            assert result[names[0]][channel].item() == pytest.approx(numeric, rel=1e-5, abs=1e-9)
    chosen = masks.expand(model, masks.from_scores(result, 0.4))
    rows = chosen[names[0]].flatten(1)
    assert bool((rows.all(dim=1) | ~rows.any(dim=1)).all()) and int(rows.all(dim=1).sum()) == len(rows) - round(
        0.4 * len(rows)
    )


def test_batches_are_taken_in_turn(mlp):
    model, batches = mlp
    short = scores.prospr(model, F.cross_entropy, iter(batches[:2]), steps=3)
    long = scores.prospr(model, F.cross_entropy, [*batches[:2], *batches[:2]], steps=3)
    assert all(torch.equal(short[name], long[name]) for name in long)
    other = scores.prospr(model, F.cross_entropy, batches, steps=3)
    assert not torch.equal(other["fc1.weight"], long["fc1.weight"])


def test_bad_input_is_named(mlp):
    model, batches = mlp
    for options, message in (
        ({"steps": -1}, "steps.*got -1"),
        ({"lr": 0.0}, r"lr.*got 0\.0"),
        ({"momentum": 1.0}, r"momentum.*got 1\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            scores.prospr(model, F.cross_entropy, batches, **options)
    with pytest.raises(ValueError, match="batches"):
        scores.prospr(model, F.cross_entropy, [])
    with pytest.raises(ValueError, match=r"prospr: structured .*layer"):
        scores.prospr(torch.nn.Sequential(model.fc1), F.cross_entropy, batches, structured=True)
    with pytest.raises(ValueError, match="NaN"):
        scores.prospr(model, F.cross_entropy, batches, lr=1e200)
