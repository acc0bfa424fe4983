"""Batch norm after a cut: the running statistics are those of the network that is left."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stochprune as sp
from stochprune.runs import ranks
from stochprune.training import FinetuneConfig, LoopOptions, WeightConfig, prune
from stochprune.training.batch_norm import recompute_statistics
from stochprune.training.methods import make_config
from stochprune.training.training import Training

pytestmark = pytest.mark.filterwarnings("ignore::stochprune.training.StuckMaskWarning")


class Frozen(nn.BatchNorm1d):
    """A norm that stays in evaluation mode."""

    def __init__(self):
        super().__init__(10)
        self.running_mean.fill_(0.5), self.running_var.fill_(3)
        self.eval()

    def train(self, mode=True):
        return super().train(False)


def with_norm(dense, **options):
    return nn.Sequential(dense[0], nn.BatchNorm1d(10, **options), Frozen(), *dense[1:])


def expected(model, loader):
    """Return the mean over the batches of the first epoch of mean and unbiased variance of the first layer's output."""
    loader.set_epoch(0)
    with torch.no_grad():
        outputs = [model[0](x) for x, _ in loader]
    return torch.stack([y.mean(0) for y in outputs]).mean(0), torch.stack([y.var(0) for y in outputs]).mean(0)


def assert_statistics(model, loader):
    mean, var = expected(model, loader)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, var)
    assert model[1].momentum == model[2].momentum == 0.1
    assert bool((model[2].running_mean == 0.5).all() and (model[2].running_var == 3).all())


def statistics(model):
    return [[float(module.training), *map(torch.clone, module.buffers(recurse=False))] for module in model]


@pytest.mark.parametrize(
    "name", ["mask_finetuning", "frozen_probabilities", "hard_concrete", "continuous_sparsification", "one_shot"]
)
@pytest.mark.parametrize("training", [True, False])
def test_statistics_after_a_method_are_those_of_its_cut(dense, loader, name, training):
    model = with_norm(dense).train(training)
    found = prune(model, loader, make_config(name, {"epochs": 2, "sparsity": 0.6}))
    assert_statistics(found.model, loader)
    assert all(module.training is training for module in found.model.modules() if not isinstance(module, Frozen))


def test_prune_finetune_computes_them_before_it_trains_the_weights(dense, loader):
    config = FinetuneConfig(2, budget_schedule="cubic", start="score")
    assert_statistics(sp.prune_finetune(with_norm(dense), loader, 0.6, config=config, weights=WeightConfig(0)), loader)


def test_a_resumed_run_has_the_same_statistics(dense, loader, killer, stop, tmp_path):
    model, config = with_norm(dense), make_config("mask_finetuning", {"epochs": 3, "sparsity": 0.6})
    part, again = copy.deepcopy(model), copy.deepcopy(model)
    whole = prune(model, loader, config).model.state_dict()
    with pytest.raises(stop):
        prune(part, loader, config, folder=tmp_path, callbacks=[killer(7)])
    resumed = prune(again, loader, config, folder=tmp_path).model.state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


class OfWords(nn.Module):
    """A network that takes keyword arguments and returns its loss."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, labels):
        return {"loss": F.cross_entropy(self.network(x), labels)}


def test_batches_are_those_of_the_training(dense, loader):
    pairs, words = with_norm(dense), OfWords(with_norm(dense))
    recompute_statistics(words, [{"x": x, "labels": y} for x, y in loader], Training())
    assert_statistics(words.network, loader)
    hook = LoopOptions(forward_loss=lambda model, batch: F.cross_entropy(model(batch[1]), batch[0]))
    recompute_statistics(pairs, [[y, x] for x, y in loader], Training(options=hook))
    assert_statistics(pairs, loader)


def penalised(model, batch):
    """Return a loss with a penalty of its gradient, by inputs and by weights."""
    x, y = batch[0].clone().requires_grad_(), batch[1]
    loss = F.cross_entropy(model(x), y)
    return loss + sum(g.square().sum() for g in torch.autograd.grad(loss, [x, model[0].weight], create_graph=True))


PENALISED = LoopOptions(forward_loss=penalised)


@pytest.mark.parametrize("training", [True, False])
def test_a_loss_may_need_gradients(dense, loader, training):
    model = with_norm(dense).train(training)
    found = prune(model, loader, make_config("gradual_magnitude", {"epochs": 1, "sparsity": 0.5}), options=PENALISED)
    assert_statistics(found.model, loader)


@pytest.mark.parametrize(
    "count, options, enabled", [(1, LoopOptions(), True), (2, LoopOptions(), False), (2, PENALISED, True)]
)
def test_a_rank_holds_the_graph_of_a_whole_batch_only_for_a_hook(dense, loader, monkeypatch, count, options, enabled):
    model, seen = with_norm(dense), set()
    model[1].register_forward_hook(lambda *_: seen.add(torch.is_grad_enabled()))
    monkeypatch.setattr(ranks, "count", lambda: count)
    recompute_statistics(model, loader, Training(options=options))
    assert seen == {enabled}
    assert_statistics(model, loader)


@pytest.mark.parametrize("training", [True, False])
def test_only_norms_that_batches_reach_in_train_mode_change(dense, loader, training):
    model = with_norm(dense).train(training)
    model[1].eval()
    model.append(nn.Module())
    model[-1].unused, model[-1].forward = nn.BatchNorm1d(3).train(training), lambda y: y
    model[-1].unused.running_mean.fill_(7)
    before = statistics(model)
    recompute_statistics(model, loader, Training())
    if not training:
        assert_statistics(model, loader)
    else:
        torch.testing.assert_close(statistics(model), before, rtol=0, atol=0)
    assert bool((model[-1].unused.running_mean == 7).all()) and model[-1].unused.training is training


@pytest.mark.parametrize("training", [True, False])
def test_an_error_leaves_the_norms_as_they_were(dense, loader, stop, training):
    def broken():
        yield from list(loader)[:2]
        raise stop

    model = with_norm(dense).train(training)
    before = statistics(model)
    for batches, error in ((broken(), stop), ([], ValueError)):
        with pytest.raises(error):
            recompute_statistics(model, batches, Training())
        torch.testing.assert_close(statistics(model), before, rtol=0, atol=0)
        assert model[1].momentum == 0.1


def test_a_model_without_running_statistics_makes_no_pass(dense):
    for model in (dense, with_norm(copy.deepcopy(dense), track_running_stats=False)):
        recompute_statistics(model, [None], Training())


def test_a_loader_without_batches_is_refused(dense):
    with pytest.raises(ValueError, match="train_loader"):
        recompute_statistics(with_norm(dense), iter([]), Training())
