"""Every trainer and score refuses batches, labels and losses that it cannot use."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

import stochprune as sp
from stochprune import scores, training
from stochprune.training import FinetuneConfig, IMPConfig, SoftThresholdConfig, WeightConfig

X, Y = torch.ones(4, 6), torch.tensor([0, 1, 2, 0])
ONCE = WeightConfig(epochs=1)
TRAINERS = {
    "finetune": lambda model, loader, **more: training.finetune(
        sp.convert(copy.deepcopy(model)), loader, FinetuneConfig(1), **more
    ),
    "train_weights": lambda model, loader, **more: training.train_weights(model, loader, ONCE, **more),
    "train_soft_threshold": lambda model, loader, **more: training.train_soft_threshold(
        model, loader, SoftThresholdConfig(1), **more
    ),
    "imp": lambda model, loader, **more: training.imp(model, loader, IMPConfig(dense=ONCE), **more),
}
WITH_EXAMPLES = ("snip", "grasp", "force", "iterative_snip", "prospr", "wanda", "sparsegpt", "dissipating_gradients")
USERS = TRAINERS | {
    name: lambda model, loader, name=name: getattr(scores, name)(model, F.cross_entropy, loader)
    for name in (*WITH_EXAMPLES, "k_starts")
}
BATCHES = {
    "a dictionary": ([{"input_ids": X, "labels": Y}], "a dict with the keys input_ids, labels"),
    "three tensors": ([(X, Y, Y)], "a tuple of Tensor, Tensor, Tensor"),
    "a tensor": ([X], "Tensor torch.float32 (4, 6)"),
    "one of a pair": ([(X,)], "a tuple of Tensor"),
    "numbers": ([(1.0, 2)], "a tuple of float, int"),
    "arrays": ([(X.numpy(), Y.numpy())], "a tuple of ndarray, ndarray"),
    "a tensor as loader": (X, "Tensor torch.float32 (6,)"),
}


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("kind", BATCHES)
def test_a_batch_that_is_no_pair_is_named(dense, user, kind):
    loader, given = BATCHES[kind]
    with pytest.raises(TypeError, match="batch 0") as caught:
        USERS[user](dense, loader)
    assert given in str(caught.value)


@pytest.mark.parametrize("user", USERS)
def test_a_loader_that_gives_nothing_or_is_none(dense, user):
    with pytest.raises(ValueError, match=r"\bno\b"):
        USERS[user](dense, [])
    with pytest.raises(TypeError, match="got 3"):
        USERS[user](dense, 3)


@pytest.mark.parametrize("user", TRAINERS)
@pytest.mark.parametrize(
    ("y", "given"),
    [
        (Y.float(), r"float32 \[4\]"),
        (Y[:3], r"int64 \[3\]"),
        (Y.unsqueeze(1), r"int64 \[4, 1\]"),
        (Y + 1, r"1 \.\. 3"),
        (Y - 1, r"-1 \.\. 1"),
        (Y.bool(), r"bool \[4\]"),
    ],
)
def test_labels_that_do_not_fit(dense, user, y, given):
    with pytest.raises(ValueError, match=rf"labels.*got {given}"):
        TRAINERS[user](dense, [(X, y)])


@pytest.mark.parametrize("user", TRAINERS)
def test_a_loss_that_is_no_number(dense, user):
    with pytest.raises(ValueError, match=r"loss_fn.*got Tensor torch.float32 \(4,\)"):
        TRAINERS[user](dense, [(X, Y)], loss_fn=lambda outputs, y: outputs.sum(1))


@pytest.mark.parametrize("user", TRAINERS)
def test_a_loss_without_a_gradient(dense, user):
    with pytest.raises(ValueError, match=r"loss_fn.*gradient"):
        TRAINERS[user](dense, [(X, Y)], loss_fn=lambda outputs, y: outputs.detach().sum())


def test_a_loss_without_a_gradient_is_no_budget_alone(dense):
    with pytest.raises(ValueError, match=r"loss_fn.*gradient"):
        training.finetune(
            sp.convert(dense), [(X, Y)], FinetuneConfig(1, budget="kl"), loss_fn=lambda outputs, y: outputs.sum().data
        )


def test_probabilities_and_ignored_labels_are_labels(dense):
    training.train_weights(dense, [(X, torch.full((4, 3), 1 / 3)), (X, torch.tensor([0, -100, 2, 1]))], ONCE)
