"""From scores to masks: exact budgets, ties, nesting, rows, n of m."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stochprune import masks

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


def rank_by_sorting(
    scores: dict[str, Tensor], sparsity: float, ties: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Follow the definition: sort all weights by score, tie, rank among equal ones of the tensor, and name."""
    entries = []
    for name, score in scores.items():
        second = torch.zeros_like(score) if ties is None else ties[name]
        values = list(zip(score.flatten().tolist(), second.flatten().tolist(), strict=True))
        for i, value in enumerate(values):
            place = (values[:i].count(value) + 0.5) / values.count(value)
            entries.append((-value[0], -value[1], place, name, i))
    result = {name: torch.zeros(score.numel(), dtype=torch.bool) for name, score in scores.items()}
    for *_, name, i in sorted(entries)[: len(entries) - round(sparsity * len(entries))]:
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
def test_layer_scope_ranks_each_tensor_by_itself(scores: dict[str, Tensor], sparsity: float) -> None:
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
    assert f" {', '.join(emptied)}" in str(caught.value)


def test_equal_scores_are_cut_evenly() -> None:
    scores = {"b": torch.zeros(8), "a": torch.zeros(4), "c": torch.zeros(20)}
    result = masks.from_scores(scores, 0.25)
    assert {name: int(mask.sum()) for name, mask in result.items()} == {"a": 3, "b": 6, "c": 15}
    assert result["b"].tolist() == [True] * 6 + [False] * 2
    again = masks.from_scores(dict(sorted(scores.items())), 0.25)  # the dictionary's order decides nothing
    assert all(torch.equal(result[name], again[name]) for name in scores)


@given(data=st.data(), scores=score_tables(), sparsity=SPARSITIES, scope=st.sampled_from(["global", "layer", "row"]))
def test_ties_decide_between_equal_scores(
    data: st.DataObject, scores: dict[str, Tensor], sparsity: float, scope: str
) -> None:
    level = st.sampled_from([0.0, 1.0, 2.0])
    ties = {
        name: torch.tensor(data.draw(st.lists(level, min_size=score.numel(), max_size=score.numel()))).view(score.shape)
        for name, score in scores.items()
    }
    result = masks.from_scores(scores, sparsity, scope, ties=ties, allow_empty=True)
    if scope == "global":
        expected = rank_by_sorting(scores, sparsity, ties)
    elif scope == "layer":
        expected = {name: rank_by_sorting({name: s}, sparsity, {name: ties[name]})[name] for name, s in scores.items()}
    else:
        rows = {(name, i): (s[i], ties[name][i]) for name, s in scores.items() for i in range(len(s))}
        cut = {key: rank_by_sorting({"": s}, sparsity, {"": t})[""] for key, (s, t) in rows.items()}
        expected = {name: torch.stack([cut[name, i] for i in range(len(s))]) for name, s in scores.items()}
    assert all(torch.equal(result[name], expected[name]) for name in scores)


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
    with pytest.raises(ValueError, match=rf"sparsity.*got {shown}"):
        masks.from_scores({"a": torch.ones(3)}, sparsity)


def test_bad_scores_are_named() -> None:
    with pytest.raises(ValueError, match=r"2 of 3 scores of b .*NaN"):
        masks.from_scores({"a": torch.ones(3), "b": torch.tensor([1.0, torch.nan, torch.nan])}, 0.5)
    with pytest.raises(TypeError, match=r"score of a .*int64"):
        masks.from_scores({"a": torch.arange(3)}, 0.5)
    with pytest.raises(ValueError, match=r"scope.*got 'local'"):
        masks.from_scores({"a": torch.ones(3)}, 0.5, "local")
    for nothing in ({}, {"a": torch.ones(0, 3)}):
        with pytest.raises(ValueError, match=r"from_scores: .*scores"):
            masks.from_scores(nothing, 0.5)


def test_the_remedy_fits_the_cause() -> None:
    scores = {"a": torch.ones(10), "b": torch.zeros(10)}
    with pytest.raises(ValueError, match=r"\bb\b.*\b0\b.*scope='layer'") as found:
        masks.from_scores(scores, 0.5)
    assert "scope" not in found.value.reason and found.value.reason in str(found.value)
    assert pickle.loads(pickle.dumps(found.value)).reason == found.value.reason  # errors travel between processes
    with pytest.raises(ValueError, match=r"a, b.* 10 weights of a layer .*sparsity"):
        masks.from_scores(scores, 0.99, "layer")
    with pytest.raises(ValueError, match="2 weights of a row"):
        masks.from_scores({"a": torch.ones(10, 2)}, 0.99, "row")


def test_sparsity_is_the_fraction_pruned() -> None:
    assert masks.sparsity({"a": torch.tensor([True, False, False]), "b": torch.tensor([True])}) == 0.5
    with pytest.raises(ValueError, match=r"sparsity: .*masks"):
        masks.sparsity({})


@given(scores=score_tables(), sparsity=SPARSITIES)
def test_row_scope_ranks_each_output_by_itself(scores: dict[str, Tensor], sparsity: float) -> None:
    result = masks.from_scores(scores, sparsity, "row", allow_empty=True)
    for name, score in scores.items():
        for row, values in zip(result[name], score, strict=True):
            assert torch.equal(row, rank_by_sorting({name: values}, sparsity)[name])


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (3, 4), (4, 4)])
def test_n_of_m_keeps_the_highest_of_each_group(n: int, m: int) -> None:
    scores = {"a": torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(0)), "b": torch.zeros(2, 8)}
    result = masks.n_of_m(scores, n, m)
    for name, score in scores.items():
        for values, kept in zip(score.reshape(-1, m), result[name].reshape(-1, m), strict=True):
            best = sorted(range(m), key=lambda i: (-values[i].item(), i))[:n]
            assert kept.nonzero().flatten().tolist() == sorted(best)


def test_bad_groups_are_named() -> None:
    with pytest.raises(ValueError, match=r"n_of_m: .*got n 3 and m 2"):
        masks.n_of_m({"a": torch.ones(2, 4)}, 3, 2)
    with pytest.raises(ValueError, match=r"n_of_m: 4 .* 6 weights of a row of a"):
        masks.n_of_m({"a": torch.ones(2, 6)}, 2, 4)


def test_groups_are_ranked_by_their_mean_score():
    scores = {"a": torch.tensor([[1.0, 3.0], [9.0, 0.0], [1.0, 1.0]]), "f": torch.arange(8.0).view(2, 1, 2, 2)}
    found = masks.from_scores(scores, 0.6, pattern="rows")  # means 2, 4.5, 1 and 1.5, 5.5
    assert found["a"].tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert found["f"].flatten(1).all(1).tolist() == [False, True] and found["f"].shape == scores["f"].shape

    matrix = {"a": torch.arange(16.0).view(4, 4)}
    assert masks.from_scores(matrix, 0.5, pattern="columns")["a"].equal(
        torch.tensor([False, False, True, True]).expand(4, 4)
    )
    blocks = masks.from_scores(matrix, 0.75, pattern="2x2")["a"]
    assert blocks[2:, 2:].all() and int(blocks.sum()) == 4
    assert masks.from_scores(matrix, 0.5, pattern="2:4")["a"].equal(masks.n_of_m(matrix, 2, 4)["a"])
