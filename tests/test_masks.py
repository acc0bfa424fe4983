"""Masks: exact budgets, ties, nesting, shuffles, reinitialisation and statistics."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import skip_init

from stochprune import masks, models

SPARSITIES = st.floats(0, 1, exclude_max=True)


@st.composite
def score_tables(draw: st.DrawFn) -> dict[str, Tensor]:
    """One to four tensors of up to 30 scores from few levels, so that most are tied."""
    names = draw(st.lists(st.sampled_from(["a", "b", "c1", "c10", "c2"]), min_size=1, max_size=4, unique=True))
    level = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 1.0, 2.0, math.inf])
    return {
        name: torch.tensor(draw(st.lists(level, min_size=rows * cols, max_size=rows * cols))).view(rows, cols)
        for name in names
        for rows, cols in [draw(st.tuples(st.integers(1, 5), st.integers(1, 6)))]
    }


def kept(result: dict[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in result.values())


def rank_by_sorting(scores: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """The definition, literally: sort all weights by (score, name, position) and keep the first."""
    entries = [(-v, name, i) for name, score in scores.items() for i, v in enumerate(score.flatten().tolist())]
    result = {name: torch.zeros(score.numel(), dtype=torch.bool) for name, score in scores.items()}
    for _, name, i in sorted(entries)[: len(entries) - round(sparsity * len(entries))]:
        result[name][i] = True
    return {name: mask.view(scores[name].shape) for name, mask in result.items()}


@given(scores=score_tables(), sparsity=SPARSITIES)
def test_global_masks_follow_the_definition(scores: dict[str, Tensor], sparsity: float) -> None:
    result = masks.from_scores(scores, sparsity, allow_empty=True)
    expected = rank_by_sorting(scores, sparsity)
    assert list(result) == list(scores)
    assert all(torch.equal(result[name], expected[name]) for name in scores)
    total = sum(score.numel() for score in scores.values())
    assert kept(result) == total - round(sparsity * total)


@given(scores=score_tables(), sparsity=SPARSITIES)
def test_layer_scope_ranks_each_tensor_apart(scores: dict[str, Tensor], sparsity: float) -> None:
    result = masks.from_scores(scores, sparsity, "layer", allow_empty=True)
    for name, score in scores.items():
        alone = rank_by_sorting({name: score}, sparsity)[name]
        assert torch.equal(result[name], alone)
        assert kept({name: result[name]}) == score.numel() - round(sparsity * score.numel())


@given(scores=score_tables(), sparsities=st.tuples(SPARSITIES, SPARSITIES), scope=st.sampled_from(["global", "layer"]))
def test_a_sparser_mask_is_a_subset(scores: dict[str, Tensor], sparsities: tuple[float, float], scope: str) -> None:
    less, more = (masks.from_scores(scores, value, scope, allow_empty=True) for value in sorted(sparsities))
    assert all(bool((less[name] | ~more[name]).all()) for name in scores)


@given(scores=score_tables(), sparsity=SPARSITIES)
def test_no_layer_is_emptied_silently(scores: dict[str, Tensor], sparsity: float) -> None:
    emptied = [name for name, mask in masks.from_scores(scores, sparsity, allow_empty=True).items() if not mask.any()]
    if not emptied:
        masks.from_scores(scores, sparsity)
        return
    with pytest.raises(ValueError) as caught:
        masks.from_scores(scores, sparsity)
    assert f"leaves no weight in {', '.join(emptied)}: choose a lower sparsity" in str(caught.value)


def test_order_of_the_dictionary_decides_no_tie() -> None:
    scores = {"b": torch.zeros(4), "a": torch.zeros(4)}
    result = masks.from_scores(scores, 0.25)
    assert result["a"].all() and result["b"].tolist() == [True, True, False, False]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_scores_of_every_floating_dtype_may_mix(dtype: torch.dtype) -> None:
    scores = {"a": torch.tensor([1.0, 4.0], dtype=dtype), "b": torch.tensor([[3.0], [2.0]])}
    result = masks.from_scores(scores, 0.5)
    assert result["a"].tolist() == [False, True] and result["b"].tolist() == [[True], [False]]
    assert all(mask.dtype == torch.bool for mask in result.values())


def test_position_is_the_logical_one_in_a_transposed_tensor() -> None:
    result = masks.from_scores({"a": torch.zeros(3, 2).T}, 0.5)
    assert result["a"].tolist() == [[True, True, True], [False, False, False]]


@pytest.mark.parametrize(("sparsity", "shown"), [(1.0, "1.0"), (-0.1, "-0.1"), (1.2, "1.2"), (math.nan, "nan")])
def test_a_sparsity_out_of_range_is_named(sparsity: float, shown: str) -> None:
    with pytest.raises(ValueError, match=rf"sparsity must lie in \[0, 1\), got {shown}"):
        masks.from_scores({"a": torch.ones(3)}, sparsity)


def test_bad_scores_are_named() -> None:
    with pytest.raises(ValueError, match=r"2 of 3 scores of b are NaN"):
        masks.from_scores({"a": torch.ones(3), "b": torch.tensor([1.0, torch.nan, torch.nan])}, 0.5)
    with pytest.raises(TypeError, match=r"the score of a must be floating, got torch\.int64"):
        masks.from_scores({"a": torch.arange(3)}, 0.5)
    with pytest.raises(ValueError, match="scope must be 'global', 'layer' or 'row', got 'local'"):
        masks.from_scores({"a": torch.ones(3)}, 0.5, "local")
    for nothing in ({}, {"a": torch.ones(0, 3)}):
        with pytest.raises(ValueError, match="there are no scores"):
            masks.from_scores(nothing, 0.5)


def test_the_remedy_fits_the_scope() -> None:
    scores = {"a": torch.ones(10), "b": torch.zeros(10)}
    with pytest.raises(ValueError, match=r"leaves no weight in b: .*scope='layer'"):
        masks.from_scores(scores, 0.5)
    with pytest.raises(ValueError, match=r"leaves no weight in a, b: choose a lower sparsity \(allow_empty"):
        masks.from_scores(scores, 0.99, "layer")


def test_sparsity_is_the_fraction_pruned() -> None:
    assert masks.sparsity({"a": torch.tensor([True, False, False]), "b": torch.tensor([True])}) == 0.5
    with pytest.raises(ValueError, match="there are no masks"):
        masks.sparsity({})


def half_masks(model: nn.Module) -> dict[str, Tensor]:
    """The larger half of each layer's weights, by value rather than magnitude."""
    weights = {name: p.detach() for name, p in model.named_parameters() if name.endswith("weight")}
    return masks.from_scores(weights, 0.5, "layer")


def test_shuffle_permutes_within_each_tensor() -> None:
    before = {name: torch.arange(1200).view(30, 40) < 600 for name in ("a", "b")}
    copies = {name: mask.clone() for name, mask in before.items()}
    after = masks.shuffle(before, seed=0)
    for name, mask in after.items():
        assert mask.shape == (30, 40) and mask.dtype == torch.bool and int(mask.sum()) == 600
        assert torch.equal(before[name], copies[name])
        # 600 of 1200 kept: a fair shuffle agrees with the original in 600 places, standard deviation 17.
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


def test_reinitialize_draws_fresh_weights_under_the_masks() -> None:
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


def test_layer_statistics_are_those_of_the_kept_weights() -> None:
    layer = skip_init(nn.Linear, 4, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]))
    mask = {"weight": torch.tensor([[True, True, False, False], [True, False, False, True]])}
    other = {"weight": torch.tensor([[False, True, True, False], [False, True, False, False]])}
    (row,) = masks.layer_statistics(layer, mask, other)
    assert (row.name, row.shape, row.kept, row.density, row.mean) == ("weight", (2, 4), 4, 0.5, 4.0)
    assert row.std == pytest.approx(np.std([1, 2, 5, 8]))
    # Quantile functions of {1, 2, 5, 8} and {2, 3, 6} on the twelve common intervals.
    a, b = np.repeat([1, 2, 5, 8], 3), np.repeat([2, 3, 6], 4)
    assert row.wasserstein == pytest.approx(np.abs(a - b).mean())
    assert masks.layer_statistics(layer, mask)[0].wasserstein is None
    assert masks.layer_statistics(layer, mask, mask)[0].wasserstein == 0


def test_statistics_of_an_emptied_layer_are_nan() -> None:
    mask = {"weight": torch.zeros(2, 4, dtype=torch.bool)}
    (row,) = masks.layer_statistics(skip_init(nn.Linear, 4, 2), mask, mask)
    assert row.kept == 0 and row.density == 0
    assert row.wasserstein is not None and all(math.isnan(value) for value in (row.mean, row.std, row.wasserstein))


def test_reference_of_other_layers_is_named() -> None:
    model = models.mlp((6, 8, 4), seed=0)
    result = half_masks(model)
    with pytest.raises(ValueError, match=r"masks and reference differ in the weights fc2\.weight"):
        masks.layer_statistics(model, result, {"fc1.weight": result["fc1.weight"]})


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
            "the model has no parameter 'fc9.weight'; it has: fc1.weight, fc1.bias",
        ),
        (
            "fc2.weight",
            torch.ones(8, 4).bool(),
            r"the mask of fc2.weight must be bool \(4, 8\), got torch.bool \(8, 4\)",
        ),
        ("fc2.weight", torch.ones(4, 8), r"the mask of fc2.weight must be bool \(4, 8\), got torch.float32 \(4, 8\)"),
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
