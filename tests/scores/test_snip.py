"""SNIP against derivations that share no code with it, and its purity."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stochprune as sp
from stochprune import models, scores


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def split(x: Tensor, y: Tensor, *sizes: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def small_network() -> nn.Module:
    return models.mlp((4, 5, 3), seed=1).double()


def test_scores_are_the_derivative_by_a_factor_on_each_weight() -> None:
    model, x, y = small_network(), normal(10, 4), torch.arange(10) % 3
    result = scores.snip(model, F.cross_entropy, split(x, y, 4, 6))
    step = 1e-6
    with torch.no_grad():
        for name, score in result.items():
            weight = model.get_parameter(name)
            for index in range(weight.numel()):
                entry, losses = weight.view(-1)[index], []
                original = entry.item()
                for factor in (1 + step, 1 - step):
                    entry.fill_(original * factor)
                    losses.append(F.cross_entropy(model(x), y).item())
                entry.fill_(original)
                numeric = abs(losses[0] - losses[1]) / (2 * step)
                assert score.view(-1)[index].item() == pytest.approx(numeric, rel=1e-5, abs=1e-8)


def normalised_network() -> nn.Sequential:
    first, last = models.mlp((4, 6), seed=0), models.mlp((6, 3), seed=1)
    return nn.Sequential(first.fc1, nn.BatchNorm1d(6), nn.ReLU(), last.fc1).double()


def least_squares(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().sum(dim=1).mean() / 2


def test_closed_form_of_least_squares() -> None:
    layer = nn.Linear(4, 3, bias=False, device="meta", dtype=torch.float64).to_empty(device="cpu")
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(2))
    x, y = normal(7, 4), normal(7, 3, seed=1)
    residual = x @ layer.weight.detach().T - y
    each = layer.weight.detach() * residual.unsqueeze(2) * x.unsqueeze(1)  # [examples, out, in]
    whole = scores.snip(layer, least_squares, split(x, y, 2, 5))["weight"]
    assert torch.allclose(whole, each.mean(dim=0).abs(), rtol=1e-12)
    by_example = scores.snip(layer, least_squares, split(x, y, *[1] * 7), absolute="batch")["weight"]
    assert torch.allclose(by_example, each.abs().mean(dim=0), rtol=1e-12)
    by_batch = scores.snip(layer, least_squares, split(x, y, 2, 5), absolute="batch")["weight"]
    expected = (2 * each[:2].mean(dim=0).abs() + 5 * each[2:].mean(dim=0).abs()) / 7
    assert torch.allclose(by_batch, expected, rtol=1e-12)
    assert not torch.allclose(whole, by_batch) and not torch.allclose(by_batch, by_example)


def test_default_does_not_depend_on_how_examples_are_batched() -> None:
    model, x, y = small_network(), normal(10, 4), torch.arange(10) % 3
    one, many = (scores.snip(model, F.cross_entropy, split(x, y, *sizes)) for sizes in ((10,), (1, 2, 3, 4)))
    assert all(torch.allclose(one[name], many[name], rtol=1e-10) for name in one)


def test_sensitivity_is_conserved_along_a_chain() -> None:
    # A chain of single units is homogeneous of degree one in each weight, so all have the same sensitivity.
    chain = models.mlp((1, 1, 1, 1), seed=0)
    for layer, value in ((chain.fc1, 0.5), (chain.fc2, 3.0), (chain.fc3, -2.0)):
        nn.init.constant_(layer.weight, value)
    x = torch.tensor([[1.0], [2.0]])
    first, second, third = (score.item() for score in scores.snip(chain, least_squares, [(x, x)]).values())
    assert first == pytest.approx(second) == pytest.approx(third) and first > 0


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = models.mlp((2, 2), seed=0), models.mlp((2, 2), seed=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_an_unused_layer_has_score_zero() -> None:
    result = scores.snip(Unused(), lambda output, _: output.sum(), [(torch.ones(1, 2), torch.zeros(1))])
    assert result["used.fc1.weight"].all() and not result["unused.fc1.weight"].any()


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model = normalised_network().train(training)
    model[0].weight.requires_grad_(False)
    model[3].weight.grad = torch.full_like(model[3].weight, 7)
    before, grad = copy.deepcopy(model.state_dict()), model[3].weight.grad
    result = scores.snip(model, F.cross_entropy, split(normal(10, 4), torch.arange(10) % 3, 5, 5))
    assert list(result) == ["0.weight", "3.weight"] and all(score.any() for score in result.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[0].weight.requires_grad and model[3].weight.requires_grad and model.training == training
    assert model[3].weight.grad is grad and bool((grad == 7).all())
    assert all(parameter.grad is None for parameter in model.parameters() if parameter is not model[3].weight)


def test_batch_statistics_count_in_training_mode_only() -> None:
    model, batches = normalised_network(), split(normal(10, 4), torch.arange(10) % 3, 10)
    in_training, in_evaluation = (scores.snip(model.train(mode), F.cross_entropy, batches) for mode in (True, False))
    assert not torch.allclose(in_training["0.weight"], in_evaluation["0.weight"])


def test_scores_under_no_grad_are_the_same() -> None:
    model, batches = small_network(), split(normal(6, 4), torch.arange(6) % 3, 6)
    with torch.no_grad():
        inside = scores.snip(model, F.cross_entropy, batches)
    outside = scores.snip(model, F.cross_entropy, batches)
    assert all(torch.equal(inside[name], outside[name]) and not outside[name].requires_grad for name in outside)


def test_half_precision_weights_get_float32_scores() -> None:
    model = models.mlp((4, 5, 3), seed=1).bfloat16()
    result = scores.snip(model, F.cross_entropy, split(normal(6, 4).bfloat16(), torch.arange(6) % 3, 6))
    assert all(score.dtype == torch.float32 and bool(score.any()) for score in result.values())


def test_a_masked_model_is_scored_under_its_mask_and_its_draws_stay() -> None:
    x, y = normal(6, 4).float(), torch.arange(6) % 3
    dense = models.mlp((4, 5, 3), seed=1)
    model = sp.convert(copy.deepcopy(dense), keep_kept=0.5).eval()
    with torch.no_grad():
        model.fc1.mask_logits[2] = -1.0  # pruned when thresholded
        dense.fc1.weight[2] = 0
    result, expected = (scores.snip(net, F.cross_entropy, [(x, y)]) for net in (model, dense))
    assert all(torch.allclose(result[name], expected[name], atol=1e-7) for name in expected)

    model.train()
    draws = [layer.mask_draw.clone() for layer in sp.nn.masked_layers(model).values()]
    first, second = (scores.snip(model, F.cross_entropy, [(x, y)]) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert draws == [layer.mask_draw for layer in sp.nn.masked_layers(model).values()]


def test_bad_input_is_named() -> None:
    model, x, y = small_network(), normal(6, 4), torch.arange(6) % 3
    with pytest.raises(ValueError, match=r"snip .*loss_fn.*batches"):
        scores.snip(model)
    with pytest.raises(ValueError, match="batches"):
        scores.snip(model, F.cross_entropy, [])
    with pytest.raises(ValueError, match=r"absolute.*got 'sum'"):
        scores.snip(model, F.cross_entropy, [(x, y)], absolute="sum")  # type: ignore[arg-type]
    with torch.no_grad():
        model.fc2.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"snip: \d+ of 20 scores of fc1\.weight .*NaN"):
        scores.snip(model, F.cross_entropy, [(x, y)])
