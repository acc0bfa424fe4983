"""The cache of thresholds notices every change of the logits that it promises to notice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stochprune.threshold_cache import ThresholdCache


@pytest.fixture
def cache():
    cache = ThresholdCache(lambda logits: logits.detach().clone())
    cache.enabled = True
    return cache


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}], ids=["loop", "foreach", "fused"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_a_step_of_an_optimiser_is_a_change(cache, kind, options):
    logits = nn.Parameter(torch.zeros(4, 8))
    cache.get(logits)
    logits.grad = torch.ones(4, 8)
    kind([logits], lr=0.1, **options).step()
    assert torch.equal(cache.get(logits), logits)


def test_memory_at_an_address_that_was_used_before_is_a_change(cache, generator):
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(64, 64))
    for _ in range(20):
        cache.get(module.weight)
        with torch.no_grad():
            module.weight.normal_(generator=generator)
        before = cache.get(module.weight)
        module.bfloat16().float()  # rounds the values; the allocator often returns the first address
        assert not torch.equal(module.weight, before) and torch.equal(cache.get(module.weight), module.weight)


def test_logits_that_do_not_change_are_read_once(cache):
    logits = nn.Parameter(torch.zeros(4, 8))
    assert cache.get(logits) is cache.get(logits) is cache.find(logits)


def through_data(logits):
    logits.data.fill_(1)


def through_another_view_of_the_memory(logits):
    logits.detach().numpy().fill(1)


@pytest.mark.parametrize("edit", [through_data, through_another_view_of_the_memory])
def test_why_the_cache_is_off_by_default(cache, edit):
    """Some changes leave no trace but the values themselves: the cache returns the old thresholds."""
    assert not ThresholdCache(cache._form).enabled
    logits = nn.Parameter(torch.zeros(4, 8))
    cache.get(logits)
    before = logits._version, logits.data_ptr()
    edit(logits)
    assert (logits._version, logits.data_ptr()) == before
    assert not torch.equal(cache.get(logits), logits)
    cache.clear()
    assert torch.equal(cache.get(logits), logits)
