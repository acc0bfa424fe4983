"""Random scores."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import nn

from stochprune import models, scores


def test_scores_are_uniform() -> None:
    score = scores.random(models.mlp((100, 100), seed=0))["fc1.weight"]
    assert score.shape == (100, 100) and score.dtype == torch.float32
    # The seed is fixed, so the test either always passes or always fails.
    assert stats.kstest(score.flatten().numpy(), "uniform").pvalue > 0.01


def test_scores_are_a_function_of_seed_and_name() -> None:
    model = models.mlp((5, 5, 5), seed=0)
    first, again, other = (scores.random(model, seed=seed) for seed in (1, 1, 2))
    for name in first:
        assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])
    assert not torch.equal(first["fc1.weight"], first["fc2.weight"])


def test_scores_do_not_depend_on_other_layers() -> None:
    alone = scores.random(nn.ModuleDict({"b": models.mlp((3, 4), seed=0)}), seed=5)
    beside = scores.random(nn.ModuleDict({"a": models.mlp((9, 9), seed=0), "b": models.mlp((3, 4), seed=0)}), seed=5)
    assert torch.equal(alone["b.fc1.weight"], beside["b.fc1.weight"])


def test_global_generator_is_left_alone() -> None:
    model = models.mlp((5, 5), seed=0)
    state = torch.get_rng_state()
    scores.random(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_bad_seed_is_named() -> None:
    with pytest.raises(ValueError, match="got -3"):
        scores.random(models.mlp((2, 2), seed=0), seed=-3)
