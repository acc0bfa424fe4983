"""Gates on branches: the contract's masks, gradients, training under a price, and what is left."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stochprune as sp
from stochprune import models, rng, training
from stochprune.nn.gated_branch import Dropped, GatedBranch, drop_branches, expected_cost, gate_branches, gated_branches


class Residual(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + self.branch(x)


def network(blocks: int = 3, seed: int = 0) -> nn.Sequential:
    return nn.Sequential(*(Residual(models.mlp((6, 6), seed=seed + i)) for i in range(blocks)))


def test_each_forward_samples_the_mask_of_its_address():
    torch_x = torch.ones(2, 6)
    model = gate_branches(network(), "*.branch", keep=0.5, seed=7).train()
    for draw in range(20):
        x = torch_x
        for name, block in zip(("0.branch", "1.branch", "2.branch"), model, strict=True):
            stream = rng.stream(f"{name}.gate.weight")
            kept = sp.keep_mask(rng.threshold_from_logits(torch.zeros(1, 1)), seed=7, draw=draw, stream=stream).item()
            plain = block.branch.branch(x)
            expected = x + plain if kept else x
            assert torch.equal(block(x), expected)
            x = expected


def test_gradient_of_the_logit_is_the_straight_through_one():
    branch = models.mlp((6, 6), seed=0)
    gated = GatedBranch(branch, keep=0.7, seed=1).train()
    x, direction = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)), torch.arange(18.0).view(3, 6)
    (gated(x) * direction).sum().backward()
    assert gated.gate.mask_logits.grad.item() == pytest.approx(
        0.7 * 0.3 * (branch(x) * direction).sum().item(), rel=1e-4
    )
    assert gated.gate.weight.grad is None


def test_a_branch_with_two_names_is_gated_and_dropped_under_both():
    model = network(1)
    model.append(Residual(model[0].branch))
    gate_branches(model, "*.branch", keep=0.2)
    assert isinstance(model[0].branch, GatedBranch) and model[1].branch is model[0].branch
    assert drop_branches(model) == ["0.branch"]
    assert isinstance(model[0].branch, Dropped) and model[1].branch is model[0].branch


def test_evaluation_keeps_probable_branches():
    x = torch.ones(2, 6)
    branch = models.mlp((6, 6), seed=0)
    for keep, expected in ((0.6, branch(x)), (0.4, torch.zeros(2, 6))):
        assert torch.equal(GatedBranch(branch, keep=keep).eval()(x), expected)


def test_dropping_leaves_what_evaluation_computes():
    model = gate_branches(network(), ["0.*", "2.branch"], keep=0.9).eval()
    assert list(gated_branches(model)) == ["0.branch", "2.branch"]
    model[0].branch.gate.mask_logits.data.fill_(-1.0)
    x = torch.ones(2, 6)
    before, parameters = model(x), sum(p.numel() for p in model.parameters())
    with pytest.raises(ValueError, match=r"0\.branch, 2\.branch .*drop_branches"):
        sp.harden(copy.deepcopy(model))  # an open gate, hardened, ran no more
    assert drop_branches(model) == ["0.branch"] and isinstance(model[0].branch, Dropped)
    assert torch.equal(model(x), before) and sum(p.numel() for p in model.parameters()) == parameters - 42 - 4


def test_expected_cost_by_hand():
    model = gate_branches(network(2), "*.branch", keep=0.9)
    model[1].branch.gate.mask_logits.data.fill_(0.0)
    assert expected_cost(model).item() == pytest.approx((0.9 + 0.5) / 2, rel=1e-5)
    cost = expected_cost(model, {"0.branch": 3.0, "1.branch": 1.0})
    assert cost.item() == pytest.approx((3 * 0.9 + 0.5) / 4, rel=1e-5)
    cost.backward()
    assert model[1].branch.gate.mask_logits.grad.item() == pytest.approx(0.25 / 4)


def test_training_under_a_price_drops_the_useless_branch():
    """The target needs one of two blocks' branches; the other computes noise, which is fixed."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(256, 6, generator=generator)
    model = network(2)
    with torch.no_grad():
        model[0].branch.fc1.weight.copy_(torch.eye(6).flip(0) * 2)
        model[1].branch.fc1.weight.mul_(0.3)
    y = (x + model[0].branch(x)).argmax(dim=1)
    gate_branches(model, "*.branch", keep=0.6, seed=2)
    before = model[0].branch.branch.fc1.weight.detach().clone()

    def priced(output, target):
        return F.cross_entropy(output, target) + 0.3 * expected_cost(model)

    config = training.FinetuneConfig(epochs=40, mode="frozen", budget="none", logit_lr=0.1)
    batches = sp.data.Batches(x, y, 64, seed=0)
    training.finetune(model, batches, config, loss_fn=priced)
    assert drop_branches(model) == ["1.branch"]
    assert torch.equal(model[0].branch.fc1.weight, before)


def test_gates_on_a_residual_network():
    model = models.resnet20(3, 10, width=4, seed=0)
    gate_branches(model, "layer*.bn2", keep=0.5).train()
    assert len(gated_branches(model)) == 9
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    F.cross_entropy(model(x), torch.arange(4)).backward()
    grads = [branch.gate.mask_logits.grad for branch in gated_branches(model).values()]
    assert all(grad is not None for grad in grads) and any(bool(grad != 0) for grad in grads)
    for branch in gated_branches(model).values():
        branch.gate.mask_logits.data.fill_(-1.0)
    assert len(drop_branches(model.eval())) == 9 and model(x).shape == (4, 10)


def test_bad_input_is_named():
    model = network()
    with pytest.raises(ValueError, match=r"Sequential.*'layer\*'"):
        gate_branches(model, "layer*")
    for use in (drop_branches, expected_cost):
        with pytest.raises(ValueError, match="gated branch"):
            use(model)
    gate_branches(model, "0.branch")
    with pytest.raises(ValueError, match=r"costs.*got \{'0\.branch': 0\}"):
        expected_cost(model, {"0.branch": 0})
    with pytest.raises(ValueError, match=r"keep.*got 1\.0"):
        GatedBranch(model[1], keep=1.0)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.LayerNorm([2, 4, 4])], ids=str)
def test_a_shortcut_is_added_in_place_to_a_dropped_normalisation(norm):
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x):
            y = self.norm(x)
            y += x
            return F.relu(y, inplace=True)

    model, x = gate_branches(Block(), "norm", keep=0.4).eval(), torch.ones(3, 2, 4, 4)
    before = model(x)
    assert drop_branches(model) == ["norm"] and torch.equal(model(x), before)


def test_a_second_gate_around_a_gate_is_refused():
    """Both would have the stream of one name, and drop_branches would leave one of them."""
    model = gate_branches(network(2), "*.branch")
    before = repr(model)
    for names in ("*.branch", "0.branch", "0.branch.branch", "1.branch.gate"):
        with pytest.raises(ValueError, match=r"gate_branches: [01]\.branch.* has a gate"):
            gate_branches(model, names)
    with pytest.raises(ValueError, match="GatedBranch: branch"):
        GatedBranch(model[0].branch)
    with pytest.raises(ValueError, match="branch has a gate"):
        gate_branches(GatedBranch(models.mlp((2, 2), seed=0)), "branch")
    assert repr(model) == before
    gate_branches(model, "0")  # a block may have a gate, and its branch too
    assert drop_branches(model) == [] and not gated_branches(model)
