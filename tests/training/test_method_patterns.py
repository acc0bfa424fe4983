"""Pruning methods with N:M patterns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stochprune.training import GradualMagnitudeConfig, prune
from stochprune.training.methods import make_config

pytestmark = pytest.mark.filterwarnings("ignore::stochprune.training.StuckMaskWarning")
WITH_PATTERN = {"one_shot": {}, "gradual_magnitude": {"every": 2}, "mask_finetuning": {"budget_schedule": "cubic"}}


@pytest.mark.parametrize("name", WITH_PATTERN)
def test_n_of_m_patterns(dense, loader, name):
    found = prune(
        dense, loader, make_config(name, {"epochs": 2, "sparsity": 0.5, "pattern": "1:2", **WITH_PATTERN[name]})
    )
    for key, mask in found.masks.items():
        assert mask.unflatten(1, (-1, 2)).sum(2).eq(1).all()
        assert not bool(found.model.get_parameter(key)[~mask].any())


@pytest.mark.parametrize("name", [*WITH_PATTERN, "maskllm", "layer_wise"])
def test_conv1d_of_transformers_has_groups_of_inputs(loader, name):
    conv = pytest.importorskip("transformers.pytorch_utils").Conv1D
    width = next(iter(loader))[0].shape[1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(conv(6, width), nn.ReLU(), nn.Linear(6, 10))
    options = {"epochs": 1, "sparsity": 0.5, "pattern": "1:2", **WITH_PATTERN.get(name, {})}
    found = prune(model, loader, make_config(name, options))
    assert found.masks["0.weight"].unflatten(0, (-1, 2)).sum(1).eq(1).all()
    assert not bool(found.model[0].weight[~found.masks["0.weight"]].any())


@pytest.mark.parametrize("name", WITH_PATTERN)
@pytest.mark.parametrize("wrong", [{"pattern": "2of4"}, {"pattern": "1:4"}, {"pattern": "3:5", "sparsity": 0.4}])
def test_patterns_that_do_not_fit_are_refused(name, wrong):
    with pytest.raises(ValueError, match=r"Config: (pattern|n:m)"):
        make_config(name, {"sparsity": 0.5, **wrong})


@pytest.mark.parametrize("method", ["one_shot", "gradual_magnitude", "mask_finetuning"])
@pytest.mark.parametrize("scope, pattern", [("layer", "2:4"), ("row", "2:4"), ("row", "rows")])
def test_a_scope_without_effect_is_refused(method, scope, pattern):
    make_config(method, {"sparsity": 0.5, "scope": scope})
    with pytest.raises(ValueError, match=rf"Config: scope .*{pattern}.*"):
        make_config(method, {"sparsity": 0.5, "pattern": pattern, "scope": scope})


def test_gradual_n_of_m_follows_the_cubic(dense, loader, recorder):
    """A group of two keeps both weights until the cubic, rounded up, asks for one: in step T = 8."""
    model, watch = dense, recorder(lambda: float((dense[0].weight == 0).float().mean()))
    config = GradualMagnitudeConfig(epochs=4, sparsity=0.5, ramp=0.5, every=4, pattern="1:2")
    prune(model, loader, config, callbacks=[watch])
    assert watch.seen == [0.0] * 7 + [0.5] * 9
