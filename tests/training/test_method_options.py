"""The options of the pruning methods: each is used, or refused where it cannot be."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

from stochprune.data import Batches
from stochprune.training import LoopOptions, MaskLLMConfig, SoftThresholdConfig, Validation, prune, train_soft_threshold
from stochprune.training.in_backward import step_in_backward
from stochprune.training.methods import METHODS, make_config
from tests.training.test_methods import config_of

pytestmark = pytest.mark.filterwarnings("ignore::stochprune.training.StuckMaskWarning")
SCHEDULED = LoopOptions(schedule=lambda optimizer, steps: lr_scheduler.LinearLR(optimizer))


@pytest.mark.parametrize("pattern", ["rows", "2x2", "2-4"])
@pytest.mark.parametrize("name", ["layer_wise", "maskllm"])
def test_methods_of_n_of_m_alone_refuse_other_patterns(name, pattern):
    with pytest.raises(ValueError, match=rf"Config: pattern is written n:m, such as 2:4, got '{pattern}'"):
        make_config(name, {"sparsity": 0.5, "pattern": pattern})


@pytest.mark.parametrize("name", METHODS)
def test_the_history_has_every_epoch(dense, loader, name):
    history = prune(dense, loader, config_of(name)).history
    assert len(history) == 4 and all(entry["loss"] > 0 for entry in history if name != "maskllm")


def test_weights_under_a_soft_threshold_decay(dense, loader):
    config = {"epochs": 2, "lr": 0.05, "sparsity": 0.5, "threshold": 1e-6}
    norms = []
    for decay in (0.0, 0.5):
        found = prune(copy.deepcopy(dense), loader, make_config("soft_threshold", {**config, "weight_decay": decay}))
        norms.append(sum(p.square().sum().item() for p in found.model.parameters()))
    assert norms[1] < 0.8 * norms[0]


@pytest.mark.parametrize("values", [{"optimizer": "adam"}, {"schedule": "linear"}])
def test_a_soft_threshold_needs_its_optimiser_and_its_schedule(values):
    with pytest.raises(ValueError, match=rf"{next(iter(values))}.*{next(iter(values.values()))}"):
        make_config("soft_threshold", values)


@pytest.mark.parametrize("name", ["gradual_magnitude", "mask_finetuning"])
def test_two_schedules_are_refused(dense, loader, name):
    with pytest.raises(ValueError, match="schedule"):
        prune(dense, loader, config_of(name, schedule="linear"), options=SCHEDULED)


def test_a_schedule_beside_that_of_the_threshold_is_refused(dense, loader):
    with pytest.raises(ValueError, match="schedule"):
        train_soft_threshold(dense, loader, SoftThresholdConfig(epochs=1), options=SCHEDULED)


def test_two_optimisers_are_refused(dense, loader):
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ValueError, match="optimizer"):
        prune(dense, loader, config_of("mask_finetuning", low_memory=True), options=LoopOptions(torch.optim.SGD))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_of_no_steps(dense, loader, schedule):
    config = config_of("mask_finetuning", epochs=0, schedule=schedule)
    assert prune(dense, loader, config).history == []


def test_rigl_refuses_an_optimiser_that_frees_its_gradients(dense, loader):
    options = LoopOptions(lambda groups: step_in_backward(groups, torch.optim.AdamW))
    with pytest.raises(ValueError, match=r"rigl.*inside backward"):
        prune(dense, loader, config_of("rigl"), options=options)


def test_maskllm_takes_the_optimiser_of_the_options(dense, loader):
    seen = []

    def make(groups):
        seen.extend(groups)
        return torch.optim.SGD(groups, momentum=0.9)

    config = config_of("maskllm", logit_lr=0.02)
    prune(dense, loader, config, options=LoopOptions(make))
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in seen] == [("scores", 0.02, 0.0)]


@pytest.mark.parametrize("values", [{"lr": 0.01}, {"weight_decay": 0.1}, {"scope": "row"}])
def test_maskllm_refuses_options_of_weights_that_it_does_not_train(values):
    ((name, value),) = values.items()
    with pytest.raises(ValueError, match=rf"MaskLLMConfig: {name} must .*{value}"):
        make_config("maskllm", values)


@pytest.mark.parametrize("rule", ["sparsegpt", "admm"])
def test_layer_wise_shows_its_rule_the_batches_by_the_hook(dense, loader, rule):
    """Batches that only the hook can read give the masks and weights of the usual ones."""
    usual = prune(copy.deepcopy(dense), loader, make_config("layer_wise", {"epochs": 1, "rule": rule}))
    batches = [{"pixels": x, "label": y} for x, y in loader]
    hook = LoopOptions(forward_loss=lambda model, batch: F.cross_entropy(model(batch["pixels"]), batch["label"]))
    loader.set_epoch(0)
    found = prune(dense, batches, make_config("layer_wise", {"epochs": 1, "rule": rule}), options=hook)
    assert all(torch.equal(found.masks[name], mask) for name, mask in usual.masks.items())
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), usual.model.parameters(), strict=True))


def test_maskllm_ends_at_its_last_temperature(dense, loader):
    """Eight steps, whose ninth temperature would be negative; the mask is measured after the last."""
    config, seen = config_of("maskllm", epochs=2, reward=0.0), []

    class Look:
        def on_epoch(self, state):
            parts = [module for module in state.model.modules() if hasattr(module, "temperature")]
            seen.append({(part.temperature, part.scale) for part in parts})

    (x, y), *_ = loader
    callbacks = [Look(), Validation([(x, y)])]
    history = prune(dense, loader, config, callbacks=callbacks).history
    ((temperature, scale),) = seen[-1]
    assert temperature == pytest.approx(0.05) and scale == 500
    assert all(0 < entry["validation_loss"] < 50 for entry in history)


class Turns(nn.Module):
    """Two layers that take turns, as experts do, and a third."""

    def __init__(self, first, second, last):
        super().__init__()
        self.experts, self.last, self.calls = nn.ModuleList([first, second]), last, 0

    def forward(self, x):
        self.calls += 1
        return self.last(self.experts[self.calls % 2](x).relu())


def test_maskllm_trains_layers_that_some_batches_do_not_reach(dense):
    x = torch.arange(64 * 6).mul(0.7).sin().view(64, 6)
    model = Turns(copy.deepcopy(dense[0]), copy.deepcopy(dense[0]), dense[2])
    config = MaskLLMConfig(epochs=2, pattern="1:2", logit_lr=0.05, reward=1e-3)
    found = prune(model, Batches(x, x[:, :3].argmax(1), 16), config, loss_fn=F.cross_entropy)
    assert len(found.masks) == 3 and all(float(mask.float().mean()) == 0.5 for mask in found.masks.values())


@pytest.mark.parametrize("name", ["gradual_magnitude", "mask_finetuning"])
def test_a_layer_that_the_training_empties_ends_no_run(dense, loader, name):
    dense[2].weight.detach().mul_(1e-6)
    own = {"start": "score", "epochs": 0} if name == "mask_finetuning" else {"lr": 1e-9, "epochs": 1}
    masks = prune(dense, loader, config_of(name, **own)).masks
    assert not masks["2.weight"].any() and int(masks["0.weight"].sum()) == 18
