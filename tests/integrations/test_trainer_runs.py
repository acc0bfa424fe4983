"""MaskTrainer: resumption, steps without a finite loss, optimisers, and refusals."""

from __future__ import annotations

import math

import pytest
import torch

import stochprune as sp
from tests.integrations import tiny

RESUMED = {
    "accumulation": {"gradient_accumulation_steps": 2, "max_steps": 6, "distillation": 0.5},
    "in backward": {"step_in_backward": True, "max_grad_norm": 0.0, "max_steps": 6},
    "restored callbacks": {"restore_callback_states_from_checkpoint": True, "num_train_epochs": 2},
    "bfloat16": {"max_steps": 6, "distillation": 0.5},
    "kl": {"budget": "kl", "budget_strength": 1e-3, "sparsity": None, "budget_schedule": "constant", "max_steps": 6},
}


def of_bfloat16_logits():
    """A model, and an optimiser that rounds its steps."""
    model = sp.convert(tiny.dense(), exclude="lm_head.*", seed=5, logits_dtype=torch.bfloat16)
    options = {"optimizer_class": torch.optim.AdamW, "model": model, "seed": 3}
    return model, {"optimizer_cls_and_kwargs": (sp.training.StochasticRounding, options)}


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_training_is_the_uninterrupted_one(transformers, tmp_path, name):
    class Kill(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    plan = {"sparsity": 0.6, "budget_schedule": "cubic", "lr_scheduler_type": "cosine", "warmup_steps": 2}
    changes = {**plan, **RESUMED[name]}

    def made(folder, callbacks=(), **changes):
        model, given = of_bfloat16_logits() if name == "bfloat16" else (None, {})
        return tiny.trainer(tmp_path / folder, model, given={"callbacks": [*callbacks], **given}, **changes)

    whole = made("whole", **changes)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        saved = {"save_strategy": "steps", "save_steps": 4, **changes}
        made("part", [Kill()], **saved).train()
    again = made("part", **changes)
    again.train(resume_from_checkpoint=True)
    tiny.assert_equal(again.model, whole.model)
    numbers = ("mean_keep", "flipped", "loss", "grad_norm", "learning_rate")
    logs = [
        [[entry[name] for name in numbers] for entry in t.state.log_history if "loss" in entry] for t in (again, whole)
    ]
    assert logs[0] == logs[1] and len(logs[0]) == whole.state.max_steps
    assert again.mask_callback.budget.made == whole.state.max_steps


class Broken:
    """Makes the outputs of a model NaN in some of its forward passes in training, counted from 0."""

    def __init__(self, model, when):
        self.when, self.count = when, 0
        model.lm_head.register_forward_hook(self)

    def __call__(self, module, inputs, outputs):
        self.count += 1
        return outputs * math.nan if self.when(self.count - 1) else outputs


class States:
    """A callback that keeps the parameters at the beginning of each step."""

    def __new__(cls, model):
        from transformers import TrainerCallback

        class Found(TrainerCallback):
            seen = []  # noqa: RUF012

            def on_step_begin(self, *args, **kwargs):
                self.seen = [*self.seen, [parameter.detach().clone() for parameter in model.parameters()]]

        return Found()


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_step_without_a_finite_loss_is_skipped(transformers, tmp_path, in_backward):
    """One of two micro-batches is enough; the next step is made, and the count begins again."""
    model = tiny.masked()
    states = States(model)
    changes = {"step_in_backward": True, "max_grad_norm": 0.0} if in_backward else {"gradient_accumulation_steps": 2}
    per_step = 1 if in_backward else 2
    Broken(model, lambda count: count // per_step in (1, 2, 4) and count % per_step == 0)
    settings = {"max_steps": 6, "max_skipped_steps": 2, "budget": "none", **changes}
    trainer = tiny.trainer(tmp_path, model, given={"callbacks": [states]}, **settings)
    trainer.train()
    pairs = zip(states.seen, states.seen[1:], strict=False)
    moved = [any(not torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in pairs]
    assert moved == [True, False, False, True, False]
    assert trainer.state.log_history[-2]["skipped_steps"] == 3
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_too_many_skipped_steps_in_a_row_end_the_training_with_the_reason(transformers, tmp_path):
    model = tiny.masked()
    Broken(model, lambda count: count >= 2)
    trainer = tiny.trainer(tmp_path, model, max_steps=9, max_skipped_steps=3)
    with pytest.raises(FloatingPointError, match=r"step 6.*3 steps") as error:
        trainer.train()
    assert trainer.state.global_step == 5 and "overflow" in str(error.value)
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    with pytest.raises(FloatingPointError, match=r"norm\.weight"):
        tiny.trainer(tmp_path, model, max_steps=1, max_skipped_steps=0).train()


def test_the_optimiser_has_groups_of_logits_of_decaying_weights_and_of_others(transformers, tmp_path):
    trainer = tiny.trainer(tmp_path, learning_rate=2e-3, logit_lr=0.3, weight_decay=0.1)
    groups = trainer.create_optimizer().param_groups
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("weights", 2e-3, 0.1),
        ("weights", 2e-3, 0.0),
        ("logits", 0.3, 0.0),
    ]
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    assert all("norm" in names[id(parameter)] for parameter in groups[1]["params"])
    assert sum(len(group["params"]) for group in groups) == len([*trainer.model.parameters()])


def test_another_optimiser_in_backward_or_not_makes_the_same_steps(transformers, tmp_path):
    models = []
    for in_backward in (False, True):
        given = {"optimizer_cls_and_kwargs": (sp.MaskedAdamW, {"thresholds": False, "weight_decay": 0.1})}
        changes = {
            "step_in_backward": in_backward,
            "max_grad_norm": 0.0,
            "max_steps": 3,
            "gradient_checkpointing": True,
        }
        trainer = tiny.trainer(tmp_path, given=given, sparsity=0.3, **changes)
        trainer.train()
        models.append(trainer.model)
    tiny.assert_equal(*models)
    assert not torch.equal(models[0].lm_head.weight, tiny.dense().lm_head.weight)


OPTIMISERS = {
    "adamw_torch_8bit": ("torchao", "AdamW8bit"),
    "adamw_torch_4bit": ("torchao", "AdamW4bit"),
    "adamw_bnb_8bit": ("bitsandbytes", "AdamW"),
}


@pytest.mark.parametrize("optim", OPTIMISERS)
def test_optimisers_with_quantised_state_are_taken_and_resumed(transformers, tmp_path, optim):
    package, name = OPTIMISERS[optim]
    pytest.importorskip(package)
    changes = {"optim": optim, "max_grad_norm": 0.0, "sparsity": 0.3, "max_steps": 4}
    models = []
    for in_backward in (False, True):
        folder = tmp_path / str(in_backward)
        saved = {"save_strategy": "steps", "save_steps": 2}
        with torch.compiler.set_stance("force_eager"):  # torchao compiles its step, a minute on a CPU
            trainer = tiny.trainer(folder, wide(), step_in_backward=in_backward, **changes, **saved)
            trainer.train()
            again = tiny.trainer(folder, wide(), step_in_backward=in_backward, **changes)
            again.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
        models += [trainer.model, again.model]
    inner = next(iter(again.optimizer.optimizer._optimizers.values()))
    assert type(inner).__name__ == name
    for model in models[1:]:
        tiny.assert_equal(model, models[0])


def wide():
    """Layers of 4,096 weights, below which these optimisers keep 32 bits."""
    return tiny.masked(tiny.dense(hidden_size=64, intermediate_size=64, num_hidden_layers=1))


@pytest.mark.parametrize(
    "changes, named", [({}, "1.0"), ({"max_grad_norm": 0.0, "gradient_accumulation_steps": 2}, "accumulation.*2")]
)
def test_steps_in_backward_refuse_clipping_and_accumulation(transformers, tmp_path, changes, named):
    with pytest.raises(ValueError, match=named):
        tiny.trainer(tmp_path, step_in_backward=True, **changes).train()


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"distillation": 1.5}, "1.5"),
        ({"max_skipped_steps": -1}, "-1"),
        ({"budget_ramp": 0.0}, "0.0"),
        ({"budget": "ship"}, "ship"),
        ({"sparsity": 1.0}, "1.0"),
        ({"mask_kl": 1.0}, "prior_logits"),
        ({"logit_lr": -1.0}, "-1.0"),
    ],
)
def test_values_outside_their_range_are_refused(transformers, tmp_path, changes, named):
    with pytest.raises(ValueError, match=named):
        tiny.trainer(tmp_path, max_steps=1, **changes).train()


def test_wrong_kinds_of_arguments_are_refused(transformers, tmp_path):
    from stochprune.integrations.transformers import MaskCallback, MaskTrainer

    with pytest.raises(TypeError, match="TrainingArguments"):
        MaskTrainer(tiny.masked(), transformers.TrainingArguments(**tiny.settings(tmp_path)))
    with pytest.raises(ValueError, match="MaskCallback"):
        tiny.trainer(tmp_path, given={"callbacks": [MaskCallback()]})
    with pytest.raises(ValueError, match="no masked layer"):
        tiny.trainer(tmp_path, tiny.dense()).train()
