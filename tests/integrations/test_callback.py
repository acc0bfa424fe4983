"""MaskCallback in a plain transformers.Trainer: the budget, its logs, its state, the cut at the end."""

from __future__ import annotations

import json

import pytest
import torch

import stochprune as sp
from stochprune.nn import masked_layers
from stochprune.runs.files import CheckpointError
from stochprune.training import StuckMaskWarning
from tests.integrations import tiny

PLAN = {"sparsity": 0.6, "schedule": "cubic", "ramp": 0.5}


def optimizers(model):
    return torch.optim.AdamW(sp.parameter_groups(model, lr=1e-3, logit_lr=0.3)), None


def plain(folder, *, callback=None, model=None, callbacks=(), **changes):
    """A plain Trainer with a MaskCallback, None for none."""
    from transformers import Trainer, TrainingArguments

    model = model or tiny.masked()
    args = TrainingArguments(**tiny.settings(folder, **{"max_steps": 6, **changes}))
    given = [*callbacks, *([] if callback is None else [callback])]
    return Trainer(model, args, train_dataset=tiny.texts(), optimizers=optimizers(model), callbacks=given)


def callback(**changes):
    from stochprune.integrations.transformers import MaskCallback

    return MaskCallback(**{**PLAN, **changes})


def test_a_plain_trainer_does_what_mask_trainer_does(transformers, tmp_path):
    model = tiny.masked()
    ours = plain(tmp_path, callback=callback())
    args = {"sparsity": 0.6, "budget_schedule": "cubic", "budget_ramp": 0.5, "max_steps": 6}
    theirs = tiny.trainer(tmp_path, model, given={"optimizers": optimizers(model)}, **args)
    for trainer in (ours, theirs):
        trainer.train()
    tiny.assert_equal(ours.model, theirs.model)


def test_the_sparsity_follows_the_cubic_and_the_logs_say_so(transformers, tmp_path):
    class Seen(transformers.TrainerCallback):
        logs = []  # noqa: RUF012

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.logs.append(dict(logs))

    seen = Seen()
    trainer = plain(tmp_path, callback=callback())
    trainer.add_callback(seen)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    expected = [0.6 + (0.05 - 0.6) * (1 - min(1, step / 3)) ** 3 for step in range(1, 7)]
    assert [entry["expected_sparsity"] for entry in logs] == pytest.approx(expected, abs=1e-5)
    assert [entry["mean_keep"] for entry in logs] == pytest.approx([1 - value for value in expected], abs=1e-5)
    layers = masked_layers(trainer.model).values()
    assert logs[-1]["flipped"] == sum(int((layer.mask_logits < 0).sum()) for layer in layers) > 0
    assert [entry["flipped"] for entry in seen.logs if "loss" in entry] == [entry["flipped"] for entry in logs]


def test_the_model_is_pruned_at_the_end(transformers, tmp_path):
    trainer = plain(tmp_path, callback=callback(harden=True))
    trainer.train()
    assert not masked_layers(trainer.model)
    masks = sp.masks.of(trainer.model)
    names = [name for name in masks if "proj" in name]
    kept, count = (sum(int(f(masks[name])) for name in names) for f in (torch.sum, torch.numel))
    assert kept == pytest.approx(0.4 * count, abs=1)


def interrupted(transformers, folder, **changes):
    """A training that ended between two steps, after its checkpoint of step 4."""

    class Kill(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plain(folder, save_strategy="steps", save_steps=4, callbacks=[Kill()], **changes).train()
    return folder / "checkpoint-4"


@pytest.mark.parametrize("restore", [False, True])
def test_a_resumed_training_is_the_uninterrupted_one(transformers, tmp_path, restore):
    whole = plain(tmp_path / "whole", callback=callback())
    whole.train()
    interrupted(transformers, tmp_path / "part", callback=callback())
    again = plain(tmp_path / "part", callback=callback(), restore_callback_states_from_checkpoint=restore)
    again.train(resume_from_checkpoint=True)
    tiny.assert_equal(again.model, whole.model)
    flipped = [[entry["flipped"] for entry in t.state.log_history if "loss" in entry] for t in (again, whole)]
    assert flipped[0] == flipped[1]


def test_damaged_checkpoints_are_refused(transformers, tmp_path):
    folder = interrupted(transformers, tmp_path, callback=callback())
    start, position = folder / "mask_start.pt", folder / "trainer_state.json"
    stored, written = start.read_bytes(), json.loads(position.read_text())

    def resume():
        plain(tmp_path, callback=callback()).train(resume_from_checkpoint=str(folder))

    for damaged in (stored[:-100], stored[:200] + b"?" + stored[201:], b"", b"PK"):
        start.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"mask_start\.pt"):
            resume()
    start.write_bytes(stored)
    for name, value in (("target", [0.5, 0.5]), ("first_sparsity", 3), ("made", "x")):
        changed = json.loads(json.dumps(written))
        changed["stateful_callbacks"]["MaskCallback"]["attributes"]["position"][name] = value
        position.write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match="checkpoint-4"):
            resume()
    del written["stateful_callbacks"]["MaskCallback"]
    position.write_text(json.dumps(written))
    with pytest.raises(CheckpointError, match="MaskCallback"):
        resume()


def test_without_the_masks_of_the_start_a_budget_goes_on_and_a_kl_does_not(transformers, tmp_path):
    """The count of flipped weights is only a number in the logs; the KL is a part of the loss."""
    whole = plain(tmp_path / "whole", callback=callback())
    whole.train()
    (interrupted(transformers, tmp_path / "part", callback=callback()) / "mask_start.pt").unlink()
    again = plain(tmp_path / "part", callback=callback())
    with pytest.warns(UserWarning, match=r"mask_start\.pt"):
        again.train(resume_from_checkpoint=True)
    tiny.assert_equal(again.model, whole.model)
    kl = {"kind": "kl", "sparsity": None, "schedule": "constant"}
    (interrupted(transformers, tmp_path / "kl", callback=callback(**kl)) / "mask_start.pt").unlink()
    with pytest.raises(CheckpointError, match=r"mask_start\.pt"):
        plain(tmp_path / "kl", callback=callback(**kl)).train(resume_from_checkpoint=True)


def test_a_stuck_mask_causes_a_warning(transformers, tmp_path):
    trainer = plain(tmp_path, callback=callback(sparsity=None, schedule="constant"), max_steps=4)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 1e-6
    with pytest.warns(StuckMaskWarning):
        trainer.train()


def test_wrong_arguments_are_refused(transformers):
    with pytest.raises(ValueError, match=r"1\.5"):
        callback(ramp=1.5)
    with pytest.raises(TypeError, match="rump"):
        callback(rump=0.5)


@pytest.mark.parametrize(("split", "numbered", "rank"), [(None, None, 3), (1, None, 3), (2, None, None), (None, 1, 1)])
def test_processes_with_the_same_activations_keep_the_same_dropout(
    transformers, tmp_path, monkeypatch, split, numbered, rank
):
    """In process 3: those of a tensor-parallel group, and those that the user has numbered."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 4)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group=None: 3)
    model = sp.nn.add_lora(tiny.masked(), 2, dropout=0.5, include="*.q_proj.*")
    layer = model.model.layers[0].self_attn.q_proj
    layer.mask_rank = model.model.layers[1].self_attn.q_proj.mask_rank = numbered
    model._tp_size = split
    args = transformers.TrainingArguments(**tiny.settings(tmp_path))
    callback().on_train_begin(args, transformers.TrainerState(max_steps=4), None, model)
    assert layer.mask_rank == rank
