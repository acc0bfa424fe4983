"""MaskedAdamW where no kernel serves: torch's AdamW, bit for bit, with states that load into each other."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stochprune as sp


def train(model, optimizer, loader, epochs=1, scheduler=None):
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()


def pair(model, **options):
    """The same model twice, one with each optimiser."""
    for kind in (sp.MaskedAdamW, torch.optim.AdamW):
        clone = copy.deepcopy(model)
        yield clone, kind(sp.parameter_groups(clone, 1e-2, weight_decay=0.1), **options)


def assert_same(first, second):
    for (name, p), q in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_bit_equal_to_torch(masked, loader, dtype):
    batches = [(x.to(dtype), y) for x, y in loader]
    (ours, optimizer), (theirs, reference) = pair(masked(dtype), betas=(0.8, 0.99), eps=1e-6)
    for model, each in ((ours, optimizer), (theirs, reference)):
        schedule = torch.optim.lr_scheduler.OneCycleLR(each, 0.1, total_steps=8)
        train(model, each, batches, 2, schedule)
    assert_same(ours, theirs)


def test_states_load_into_each_other(masked, loader):
    (ours, optimizer), (theirs, reference) = pair(masked())
    train(ours, optimizer, loader)
    train(theirs, reference, loader)
    states = [copy.deepcopy(each.state_dict()) for each in (optimizer, reference)]
    assert {*states[0]["state"][0]} == {*states[1]["state"][0]} == {"step", "exp_avg", "exp_avg_sq"}
    optimizer.load_state_dict(states[1])
    reference.load_state_dict(states[0])
    assert all(group["thresholds"] for group in optimizer.param_groups)
    train(ours, optimizer, loader)
    train(theirs, reference, loader)
    assert_same(ours, theirs)


def test_resumes_from_a_state(masked, loader):
    through = masked()
    optimizer = sp.MaskedAdamW(sp.parameter_groups(through, 1e-2), thresholds=False)
    train(through, optimizer, loader)
    resumed, other = copy.deepcopy((through, optimizer))
    fresh = sp.MaskedAdamW(sp.parameter_groups(resumed, 1.0))
    fresh.load_state_dict(other.state_dict())
    assert not any(group["thresholds"] for group in fresh.param_groups)
    batches = list(loader)
    train(through, optimizer, batches)
    train(resumed, fresh, batches)
    assert_same(through, resumed)


def test_a_closure_returns_the_loss():
    p = nn.Parameter(torch.ones(3))
    optimizer = sp.MaskedAdamW([p], lr=0.5, weight_decay=0.0)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert optimizer.step(closure).item() == pytest.approx(0.75)


@pytest.mark.parametrize(
    "name, value",
    [("lr", -0.1), ("lr", float("nan")), ("eps", -1.0), ("weight_decay", float("inf")), ("betas", (1.0, 0.9))],
)
@pytest.mark.parametrize("in_group", [True, False])
def test_a_value_outside_its_range(name, value, in_group):
    params = [nn.Parameter(torch.ones(2))]
    with pytest.raises(ValueError, match=name):
        sp.MaskedAdamW([{"params": params, name: value}]) if in_group else sp.MaskedAdamW(params, **{name: value})


def test_a_sparse_gradient():
    table = nn.Embedding.from_pretrained(torch.ones(4, 2), freeze=False, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="SparseAdam"):
        sp.MaskedAdamW(table.parameters()).step()
