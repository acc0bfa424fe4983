"""Weight training under a fixed mask."""

from __future__ import annotations

import copy

import pytest
import torch

from stochprune.training import WeightConfig, train_weights
from stochprune.training.weights import FixedMasks


def half(model):
    generator = torch.Generator().manual_seed(4)
    return {
        name: torch.rand(parameter.shape, generator=generator) < 0.5
        for name, parameter in model.named_parameters()
        if name.endswith("weight")
    }


def test_pruned_weights_stay_zero_at_each_step(dense, loader, recorder):
    masks = half(dense)
    weights = dict(dense.named_parameters())
    watch = recorder(lambda: sum(weights[name][~mask].abs().sum().item() for name, mask in masks.items()))
    before = {name: weights[name].detach().clone() for name in masks}
    history = train_weights(dense, loader, WeightConfig(epochs=5, lr=0.02), masks=masks, callbacks=[watch])
    assert watch.seen == [0.0] * 20 and watch.epochs == [1, 2, 3, 4, 5]
    assert history[-1]["loss"] < history[0]["loss"]
    assert all((weights[name] != before[name])[mask].any() for name, mask in masks.items())


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    ],
)
def test_momentum_of_earlier_dense_steps_moves_nothing(dense, problem, optimizer):
    x, y = problem
    steps = optimizer(dense.parameters())

    def step(constraint=None):
        steps.zero_grad()
        torch.nn.functional.cross_entropy(dense(x), y).backward()
        if constraint:
            constraint.before_step()
            assert all((p.grad[pruned] == 0).all() for p, pruned in constraint.pairs)
        steps.step()
        if constraint:
            constraint.after_step()

    for _ in range(3):
        step()
    masks = half(dense)
    constraint = FixedMasks(dense, masks)
    for _ in range(3):
        step(constraint)
        assert all((dict(dense.named_parameters())[name][~mask] == 0).all() for name, mask in masks.items())


def test_resume_is_bit_for_bit(dense, loader, recorder, stop, tmp_path):
    masks, config = half(dense), WeightConfig(epochs=3, checkpoint_every=3)
    runs = [copy.deepcopy(dense) for _ in range(3)]
    expected = train_weights(runs[0], loader, config, masks=masks)
    with pytest.raises(stop):
        train_weights(runs[1], loader, config, masks=masks, folder=tmp_path, callbacks=[recorder(stop=7)])
    history = train_weights(runs[2], loader, config, masks=masks, folder=tmp_path)
    assert history == expected
    assert all(torch.equal(a, b) for a, b in zip(runs[0].parameters(), runs[2].parameters(), strict=True))


def test_gradients_of_pruned_weights_do_not_reach_the_optimiser(dense, loader, monkeypatch):
    """Weights are set to 0 after each step too, so look at the moments: a mask lifted later must find them 0."""
    masks, moments = half(dense), []
    original = torch.optim.Adam.step

    def step(self, *arguments):
        original(self, *arguments)
        moments.append({name: self.state[weights[name]]["exp_avg"].clone() for name in masks})

    weights = dict(dense.named_parameters())
    monkeypatch.setattr(torch.optim.Adam, "step", step)
    train_weights(dense, loader, WeightConfig(epochs=1), masks=masks)
    assert len(moments) == 4
    assert all((moment[name][~masks[name]] == 0).all() for moment in moments for name in masks)


def test_masks_that_do_not_fit(dense, loader):
    with pytest.raises(ValueError, match=r"masks.*'fc\.weight'"):
        train_weights(dense, loader, WeightConfig(), masks={"fc.weight": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"mask of 0\.weight.*\(2,\).*\(10, 6\)"):
        train_weights(dense, loader, WeightConfig(), masks={"0.weight": torch.ones(2, dtype=torch.bool)})


def test_a_tied_weight_may_be_masked_by_any_of_its_names():
    net = torch.nn.Sequential(*(torch.nn.utils.skip_init(torch.nn.Linear, 3, 3) for _ in range(2)))
    torch.nn.init.ones_(net[0].weight)
    net[1].weight = net[0].weight
    FixedMasks(net, {"1.weight": torch.eye(3, dtype=torch.bool)})
    assert torch.equal(net[0].weight, torch.eye(3))


def test_the_sampler_of_a_loader_is_told_the_epoch(dense, problem):
    """Else every epoch would have the order of the first."""

    class Shuffled(torch.utils.data.Sampler):
        def __init__(self):
            self.epoch, self.orders = 0, []

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            order = torch.randperm(60, generator=torch.Generator().manual_seed(self.epoch)).tolist()
            self.orders.append(order)
            return iter(order)

        def __len__(self):
            return 60

    sampler, numbers = Shuffled(), torch.Generator()
    loader = torch.utils.data.DataLoader([*zip(*problem, strict=True)], 16, sampler=sampler, generator=numbers)
    train_weights(dense, loader, WeightConfig(3))
    assert len(sampler.orders) == 3 and len({*map(tuple, sampler.orders)}) == 3
