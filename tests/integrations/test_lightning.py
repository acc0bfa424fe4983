"""MaskCallback in a Lightning Trainer: what a loop by hand does, resumption, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import stochprune as sp
from stochprune.nn import masked_layers
from stochprune.training import step_in_backward
from tests.integrations import tiny
from tests.runs import owners

lightning = pytest.importorskip("lightning")
PLAN = {"sparsity": 0.6, "schedule": "cubic", "ramp": 0.5}


def masked():
    return sp.convert(owners.dense(), seed=5)


def optimizer_of(model, in_backward=False):
    groups = sp.parameter_groups(model, lr=1e-2, logit_lr=0.3)
    return step_in_backward(groups, torch.optim.AdamW) if in_backward else torch.optim.AdamW(groups)


class Task(lightning.LightningModule):
    def __init__(self, in_backward=False):
        super().__init__()
        self.model, self.in_backward, self.logged = masked(), in_backward, []

    def training_step(self, batch, number):
        x, y = batch
        return F.cross_entropy(self.model(x), y)

    def configure_optimizers(self):
        return optimizer_of(self.model, self.in_backward)

    def on_train_epoch_end(self):
        self.logged.append({name: float(value) for name, value in self.trainer.callback_metrics.items()})


class Kill(lightning.Callback):
    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == 7:
            raise RuntimeError("killed")


def fit(task, folder, *, callback=None, callbacks=(), ckpt_path=None, **changes):
    from stochprune.integrations.lightning import MaskCallback

    callback = callback or MaskCallback(**{**PLAN, **changes.pop("plan", {})})
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    settings = {"max_epochs": 3, "enable_checkpointing": bool(callbacks), **changes}
    trainer = lightning.Trainer(default_root_dir=folder, callbacks=[callback, *callbacks], **quiet, **settings)
    batches = torch.utils.data.DataLoader(list(owners.loader()), batch_size=None)
    trainer.fit(task, batches, ckpt_path=ckpt_path)
    return callback


@pytest.mark.parametrize("in_backward", [False, True])
def test_it_does_what_a_loop_by_hand_does(tmp_path, in_backward):
    task, model = Task(in_backward), masked()
    fit(task, tmp_path)
    optimizer = optimizer_of(model)
    batches = list(owners.loader())
    budget = sp.Budget(model, 0.6, schedule="cubic", steps=round(0.5 * 3 * len(batches)))
    for x, y in batches * 3:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        budget.step()
    tiny.assert_equal(task.model, model)
    assert task.logged[-1]["mean_keep"] == pytest.approx(0.4, abs=1e-5)
    assert task.logged[-1]["expected_sparsity"] == pytest.approx(0.6, abs=1e-5)
    assert task.logged[-1]["flipped"] == sum(
        int((each.mask_logits < 0).sum()) for each in masked_layers(model).values()
    )


def test_the_budget_makes_one_step_for_each_step_of_the_optimiser(tmp_path):
    callback = fit(Task(), tmp_path, accumulate_grad_batches=2)
    assert callback.budget.made == 3 * 2  # three batches an epoch are two steps


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path, in_backward):
    """Killed within the third epoch, resumed from the checkpoint of the second one. Lightning skips no batches."""
    whole, part, again = (Task(in_backward) for _ in range(3))
    fit(whole, tmp_path)
    saving = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    with pytest.raises(RuntimeError, match="killed"):
        fit(part, tmp_path, callbacks=[saving, Kill()])
    callback = fit(again, tmp_path, ckpt_path=tmp_path / "last.ckpt")
    tiny.assert_equal(again.model, whole.model)
    assert again.logged[-1] == whole.logged[-1] and callback.budget.made == 9


def test_a_callback_begins_anew_in_the_training_after_a_resumed_one(tmp_path):
    saving = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    fit(Task(), tmp_path, callbacks=[saving], max_epochs=1)
    callback = fit(Task(), tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert callback.budget.made == 9
    fit(Task(), tmp_path, callback=callback, max_epochs=1)
    assert callback.budget.made == 3


def test_the_model_is_pruned_at_the_end(tmp_path):
    task = Task()
    fit(task, tmp_path, plan={"harden": True})
    assert not masked_layers(task.model)
    assert sp.masks.sparsity(sp.masks.of(task.model)) == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize(
    "settings, named",
    [({"gradient_clip_val": 0.5}, "0.5"), ({"accumulate_grad_batches": 2}, "accumulation.*2")],
)
def test_settings_that_steps_in_backward_cannot_have_are_refused(tmp_path, settings, named):
    with pytest.raises(ValueError, match=named):
        fit(Task(in_backward=True), tmp_path, **settings)


def test_a_cubic_needs_a_training_of_known_length(tmp_path):
    with pytest.raises(ValueError, match="inf"):
        fit(Task(), tmp_path, max_epochs=-1)
