"""Masks on the weights of a model: shuffles, reinitialisation, rescaling, expansion."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from stochprune import masks, models


def half_masks(model: nn.Module) -> dict[str, Tensor]:
    """The larger half of each layer's weights, by value rather than magnitude."""
    weights = {name: p.detach() for name, p in model.named_parameters() if name.endswith("weight")}
    return masks.from_scores(weights, 0.5, "layer")


def test_inverted_scores_keep_the_lowest() -> None:
    scores = {"a": torch.tensor([[1.0, 5.0], [2.0, 9.0]]), "b": torch.tensor([-1.0, 3.0], dtype=torch.float64)}
    inverted = masks.invert(scores)
    assert inverted["b"].dtype == torch.float64 and scores["a"].sum() == 17
    kept = masks.from_scores(inverted, 0.5)
    assert kept["a"].tolist() == [[True, False], [True, False]] and kept["b"].tolist() == [True, False]
    again = masks.invert(inverted)
    assert all(torch.equal(again[name], scores[name]) for name in scores)


def test_shuffle_permutes_within_each_tensor() -> None:
    before = {name: torch.arange(1200).view(30, 40) < 600 for name in ("a", "b")}
    copies = {name: mask.clone() for name, mask in before.items()}
    after = masks.shuffle(before, seed=0)
    for name, mask in after.items():
        assert mask.shape == (30, 40) and mask.dtype == torch.bool and int(mask.sum()) == 600
        assert torch.equal(before[name], copies[name])
        # 600 of 1200 kept: a fair shuffle agrees with the original at 600 weights, standard deviation 17.
        assert abs(int((mask == before[name]).sum()) - 600) < 5 * 18
    assert abs(int((after["a"] == after["b"]).sum()) - 600) < 5 * 18  # independent of each other


def test_shuffle_is_a_function_of_seed_and_name() -> None:
    mask = torch.arange(100) < 50
    alone, beside = masks.shuffle({"b": mask}, 3), masks.shuffle({"a": mask, "b": mask}, 3)
    assert torch.equal(alone["b"], beside["b"])
    assert not torch.equal(alone["b"], masks.shuffle({"b": mask}, 4)["b"])


def test_every_position_of_a_shuffle_is_as_likely() -> None:
    mask = torch.tensor([True, False, False, False])
    counts = sum(masks.shuffle({"a": mask}, seed)["a"].long() for seed in range(400))
    assert bool(((counts - 100).abs() < 5 * math.sqrt(75)).all())


def test_apply_sets_pruned_weights_to_zero_in_place() -> None:
    model = models.mlp((6, 8, 4), seed=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    chosen = {"fc2.weight": half_masks(model)["fc2.weight"]}
    weight = model.fc2.weight
    assert masks.apply(model, chosen) is model and model.fc2.weight is weight and weight.requires_grad
    assert torch.equal(weight, torch.where(chosen["fc2.weight"], before["fc2.weight"], 0.0))
    assert torch.equal(model.fc1.weight, before["fc1.weight"])
    with torch.no_grad():
        weight[:] = torch.inf
    masks.apply(model, chosen)
    assert bool((weight[~chosen["fc2.weight"]] == 0).all())  # a product with 0 would be NaN


def test_reinitialize_samples_fresh_weights_under_the_masks() -> None:
    model = models.mlp((60, 80, 40), seed=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = half_masks(model)
    nn.init.constant_(model.fc1.bias, 0.25)
    assert masks.reinitialize(model, result, seed=0) is model
    for name, mask in result.items():
        weight = model.get_parameter(name).detach()
        assert torch.equal(weight != 0, mask)
        assert not bool((weight == before[name])[mask].any())  # the same seed made the model
        assert weight[mask].std().item() == pytest.approx(math.sqrt(2 / mask.shape[1]), rel=0.1)
        assert abs(weight[mask].mean()) < 0.1 * weight[mask].std()
    assert bool((model.fc1.bias == 0.25).all())


def test_reinitialize_is_a_function_of_seed_and_name() -> None:
    first, again, other = (models.mlp((6, 8, 8, 8), seed=i) for i in range(3))
    result = half_masks(first)
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        masks.reinitialize(model, result, seed)
    assert torch.equal(first.fc2.weight, again.fc2.weight) and not torch.equal(first.fc2.weight, other.fc2.weight)
    everywhere = {name: torch.ones_like(mask) for name, mask in result.items()}
    masks.reinitialize(first, everywhere, 1)
    assert not torch.equal(first.fc2.weight, first.fc3.weight)


@pytest.mark.parametrize(
    "use",
    [
        lambda model, bad: masks.apply(model, bad),
        lambda model, bad: masks.reinitialize(model, bad, 0),
        lambda model, bad: masks.layer_statistics(model, bad),
    ],
)
@pytest.mark.parametrize(
    ("name", "mask", "message"),
    [
        (
            "fc9.weight",
            torch.ones(4, 8).bool(),
            "'fc9.weight'.*fc1.weight, fc1.bias",
        ),
        (
            "fc2.weight",
            torch.ones(8, 4).bool(),
            r"mask of fc2\.weight.*got torch\.bool \(8, 4\)",
        ),
        ("fc2.weight", torch.ones(4, 8), r"mask of fc2\.weight.*got torch\.float32 \(4, 8\)"),
    ],
)
def test_masks_that_do_not_fit_change_nothing(
    use: Callable[[nn.Module, dict[str, Tensor]], object], name: str, mask: Tensor, message: str
) -> None:
    model = models.mlp((6, 8, 4), seed=0)
    before = model.fc1.weight.detach().clone()
    with pytest.raises(ValueError, match=message):
        use(model, {"fc1.weight": torch.zeros(8, 6, dtype=torch.bool), name: mask})
    assert torch.equal(model.fc1.weight, before)


def test_randomness_is_local() -> None:
    model = models.mlp((6, 8, 4), seed=0)
    state = torch.get_rng_state()
    masks.reinitialize(model, masks.shuffle(half_masks(model), 0), 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_rescale_brings_each_layer_back_to_its_variance() -> None:
    """At the edge of chaos the signal keeps its size if pruned layers are rescaled; otherwise it vanishes."""
    model = models.mlp((200,) * 11, seed=0)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    chosen = {
        name: torch.rand(200, 200, generator=torch.Generator().manual_seed(1)) < 0.2 for name in half_masks(model)
    }
    x = torch.randn(50, 200, generator=torch.Generator().manual_seed(2))
    size = model(x).square().mean()
    faded = masks.apply(models.mlp((200,) * 11, seed=0), chosen)(x).square().mean()
    factors = masks.rescale(model, chosen)
    for name, mask in chosen.items():
        assert torch.allclose(
            model.get_parameter(name), torch.where(mask, before[name] * factors[name], 0.0), rtol=1e-6
        )
        assert model.get_parameter(name).square().sum().item() == pytest.approx(
            before[name].square().sum().item(), rel=1e-5
        )
    assert faded < 1e-5 * size and size / 4 < model(x).square().mean() < 4 * size


def test_a_layer_without_weights_has_no_scale() -> None:
    model = models.mlp((6, 8, 4), seed=0)
    before = model.fc1.weight.detach().clone()
    masked = {"fc1.weight": torch.ones(8, 6).bool(), "fc2.weight": torch.zeros(4, 8).bool()}
    with pytest.raises(ValueError, match=r"rescale: .*fc2\.weight .*\b0 weights"):
        masks.rescale(model, masked)
    assert torch.equal(model.fc1.weight, before)


def test_expand_makes_masks_of_weights_from_masks_of_channels() -> None:
    model = models.mlp((3, 4, 2), seed=0)
    channels = {"fc1.weight": torch.tensor([[True], [False], [True], [True]])}
    expanded = masks.expand(model, channels)["fc1.weight"]
    assert expanded.tolist() == [[True] * 3, [False] * 3, [True] * 3, [True] * 3]
    masks.apply(model, {"fc1.weight": expanded})
    with pytest.raises(ValueError, match=r"expand: .*fc2\.weight.*\(3, 1\).*\(2, 4\)"):
        masks.expand(model, {"fc2.weight": torch.ones(3, 1).bool()})
    with pytest.raises(ValueError, match=r"expand: .*'fc9\.weight'"):
        masks.expand(model, {"fc9.weight": torch.ones(3, 1).bool()})
