"""Mask fine-tuning with few bytes a logit: bfloat16 logits, moments of eight bits, steps inside backward."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stochprune.studies.language_models import Footprint
from stochprune.training import LoopOptions, prune
from stochprune.training.methods import make_config

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore::stochprune.training.StuckMaskWarning", "ignore::FutureWarning")
OPTIONS = {"mode": "frozen", "pattern": "2:4", "sparsity": 0.5, "budget": "none", "epochs": 4, "logit_lr": 0.3}
SIZE = 128


@pytest.fixture
def task():
    """A wide regression, whose layers have more than 4,096 weights, and a network of the right size."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, SIZE, generator=generator)
    model = nn.Sequential(nn.utils.skip_init(nn.Linear, SIZE, SIZE), nn.ReLU(), nn.utils.skip_init(nn.Linear, SIZE, 8))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    with torch.no_grad():
        y = model(x)
    model.requires_grad_(False)
    return model, list(zip(x.split(32), y.split(32), strict=True))


class Ends:
    """Ends the training in the middle."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, state) -> None:
        if state.step == self.step:
            raise InterruptedError


def run(task, low_memory, folder=None, callbacks=(), **changes):
    model, batches = copy.deepcopy(task)
    config = make_config("mask_finetuning", {**OPTIONS, "low_memory": low_memory, "checkpoint_every": 3})
    return prune(model, batches, config, loss_fn=F.mse_loss, folder=folder, callbacks=callbacks, **changes)


def test_it_trains_like_float32_in_a_quarter_of_the_bytes(task):
    small, full = Footprint(), Footprint()
    found, expected = run(task, True, callbacks=[small]), run(task, False, callbacks=[full])
    start = make_config("one_shot", {"pattern": "2:4", "sparsity": 0.5, "epochs": 0})
    before = prune(*copy.deepcopy(task), start, loss_fn=F.mse_loss)
    losses = [sum(float(F.mse_loss(each.model(x), y)) for x, y in task[1]) for each in (before, expected, found)]
    assert losses[1] < 0.9 * losses[0] and losses[2] < losses[1] + 0.2 * (losses[0] - losses[1])
    weights = sum(parameter.numel() for parameter in task[0].parameters() if parameter.dim() > 1)
    others = sum(parameter.nbytes for parameter in task[0].parameters())
    # Of the small layer the moments have 32 bits, and the large one has a gradient.
    assert full.bytes - others == pytest.approx(16 * weights, rel=0.01)
    assert small.bytes - others < 0.45 * 16 * weights


def test_it_resumes_bit_for_bit(task, tmp_path):
    whole = run(task, True)
    with pytest.raises(InterruptedError):
        run(task, True, tmp_path, [Ends(14)])
    again = run(task, True, tmp_path)
    assert [*again.masks] == [*whole.masks] and again.history == whole.history
    assert all(torch.equal(again.masks[name], mask) for name, mask in whole.masks.items())


def test_clipping_is_refused(task):
    with pytest.raises(ValueError, match="step_in_backward"):
        run(task, True, options=LoopOptions(clip_norm=1.0))
