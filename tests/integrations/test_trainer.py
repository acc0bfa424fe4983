"""MaskTrainer: the loss of a step."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stochprune as sp
from stochprune.nn import masked_layers, without_masks
from stochprune.training import distillation_loss
from tests.integrations import tiny

TERMS = {
    "distillation": 0.3,
    "distillation_temperature": 2.0,
    "mask_l0": 1e-4,
    "mask_kl": 1e-5,
    "budget": "penalty",
    "sparsity": 0.5,
}


class Plain(nn.Module):
    """A classifier that takes no num_items_in_batch and returns its mean loss."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*[nn.utils.skip_init(nn.Linear, 6, 6) for _ in range(2)])
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.dim()))

    def forward(self, x, labels):
        outputs = self.layers(x)
        return sp_output(loss=F.cross_entropy(outputs, labels), logits=outputs)


def sp_output(**values):
    from transformers.utils import ModelOutput

    return ModelOutput(values)


def plain_data():
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(3))
    return [{"x": row, "labels": torch.tensor(i % 6)} for i, row in enumerate(x)]


def encoder_decoder():
    """Its labels are not shifted, and it ignores the number of labels that it is given."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": tiny.VOCABULARY, "d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0))
    return sp.convert(model, exclude=["lm_head.*", "shared.*"], seed=5)


KINDS = {
    "language model": lambda: (tiny.masked(), tiny.texts()),
    "encoder and decoder": lambda: (encoder_decoder(), tiny.texts()),
    "plain": lambda: (sp.convert(Plain(), seed=5), plain_data()),
}


class Gradients:
    """A callback that keeps the gradients of a step, and gives all of its micro-batches the same masks."""

    def __new__(cls, model):
        from transformers import TrainerCallback

        class Found(TrainerCallback):
            def on_substep_end(self, *args, **kwargs):
                for layer in masked_layers(model).values():
                    layer.mask_draw.zero_()

            def on_pre_optimizer_step(self, *args, **kwargs):
                self.found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

        return Found()


def gradients(folder, kind, accumulate, **changes):
    model, data = KINDS[kind]()
    prior = {name: layer.mask_logits.detach() - 1 for name, layer in masked_layers(model).items()}
    seen = Gradients(model)
    trainer = tiny.trainer(
        folder,
        model,
        data=data,
        given={"callbacks": [seen], "prior_logits": prior},
        **{"max_steps": 1, "max_grad_norm": 0, "gradient_accumulation_steps": accumulate, **changes},
        per_device_train_batch_size=8 // accumulate,
    )
    trainer.train()
    return seen.found, trainer.state.log_history[0]["loss"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_term_is_scaled_right_under_accumulation(transformers, tmp_path, kind):
    whole, loss = gradients(tmp_path, kind, 1, **TERMS)
    assert {name.rpartition(".")[2] for name in whole} >= {"weight", "mask_logits"}
    for accumulate in (2, 4, 8):
        parts, mean = gradients(tmp_path, kind, accumulate, **TERMS)
        assert mean == pytest.approx(loss, abs=1e-5)
        for name, gradient in whole.items():
            assert torch.allclose(parts[name], gradient, rtol=1e-5, atol=1e-6), (accumulate, name)


@pytest.mark.parametrize("term", [{"distillation": 1.0}, {"mask_l0": 0.01}, {"mask_kl": 0.01}, {"budget": "penalty"}])
def test_each_term_changes_the_gradient_of_the_logits(transformers, tmp_path, term):
    """Otherwise the test above would pass without them."""
    plain, _ = gradients(tmp_path, "language model", 2, sparsity=0.5)
    found, _ = gradients(tmp_path, "language model", 2, sparsity=0.5, **term)
    assert any((found[name] - plain[name]).abs().max() > 1e-5 for name in plain if name.endswith("mask_logits"))


def test_the_loss_of_a_step_is_the_formula(transformers, tmp_path):
    model, data = tiny.masked(), tiny.texts()
    batch = {name: torch.stack([text[name] for text in data]) for name in data[0]}
    counted = batch["labels"][:, 1:] != -100
    teacher = tiny.dense()(batch["input_ids"]).logits[:, :-1][counted]
    student = copy.deepcopy(model).train()(batch["input_ids"]).logits[:, :-1][counted]
    task = F.cross_entropy(student, batch["labels"][:, 1:][counted])
    p, q = torch.log_softmax(teacher / 2, -1), torch.log_softmax(student / 2, -1)
    divergence = 4 * (p.exp() * (p - q)).sum(-1).mean()
    kept = sum(torch.sigmoid(layer.mask_logits).sum() for layer in masked_layers(model).values())
    expected = 0.7 * task + 0.3 * divergence + 1e-4 * kept
    changes = {"distillation": 0.3, "distillation_temperature": 2.0, "mask_l0": 1e-4, "budget": "none"}
    trainer = tiny.trainer(tmp_path, model, max_steps=1, per_device_train_batch_size=8, **changes)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_micro_batch_without_labels_counts_nothing(transformers, tmp_path):
    data = tiny.texts(4)
    empty = [{**text, "labels": torch.full_like(text["labels"], -100)} for text in tiny.texts(4)]
    found = []
    for texts, accumulate in ((data, 1), (data + empty, 2)):
        model, given = tiny.masked(), {"callbacks": []}
        seen = Gradients(model)
        given["callbacks"].append(seen)
        changes = {"gradient_accumulation_steps": accumulate, "train_sampling_strategy": "sequential"}
        settings = {"max_steps": 1, "max_grad_norm": 0, "per_device_train_batch_size": 4, "distillation": 0.5}
        trainer = tiny.trainer(tmp_path, model, data=texts, given=given, **settings, **changes)
        trainer.train()
        assert not trainer.state.log_history[0].get("skipped_steps")
        found.append(seen.found)
    for name, gradient in found[0].items():
        assert torch.allclose(found[1][name], gradient, rtol=1e-5, atol=1e-7), name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_without_labels_has_the_other_terms_alone(transformers, tmp_path, accumulate):
    empty = [{**text, "labels": torch.full_like(text["labels"], -100)} for text in tiny.texts()]
    seen = Gradients(model := tiny.masked())
    settings = {"max_steps": 1, "max_grad_norm": 0, "gradient_accumulation_steps": accumulate, "mask_l0": 0.01}
    trainer = tiny.trainer(
        tmp_path, model, data=empty, given={"callbacks": [seen]}, **settings, distillation=0.5, budget="none"
    )
    kept = {name: torch.sigmoid(layer.mask_logits.detach()) for name, layer in masked_layers(model).items()}
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.01 * sum(q.sum().item() for q in kept.values()))
    for name, gradient in seen.found.items():
        q = kept.get(name.replace("mask_logits", "weight")) if name.endswith("mask_logits") else None
        assert torch.allclose(gradient, torch.zeros(()) if q is None else 0.01 * q * (1 - q), atol=1e-9), name


def test_an_evaluation_has_the_loss_of_the_task_alone(transformers, tmp_path):
    model, data = tiny.masked(), tiny.texts(2)
    trainer = tiny.trainer(tmp_path, model, **TERMS, max_steps=1, given={"prior_logits": 0.0, "eval_dataset": data})
    trainer.train()
    batch = {name: torch.stack([text[name] for text in data]) for name in data[0]}
    with torch.no_grad():
        expected = model.eval()(**batch).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)


def test_micro_batches_have_masks_of_their_own(transformers, tmp_path):
    trainer = tiny.trainer(tmp_path, max_steps=2, gradient_accumulation_steps=4, distillation=0.5)
    trainer.train()
    assert {int(layer.mask_draw) for layer in masked_layers(trainer.model).values()} == {8}


def test_without_masks_is_the_dense_model_and_uses_no_draw(transformers):
    model, ids = tiny.masked(), tiny.texts()[0]["input_ids"][None]
    with torch.no_grad(), without_masks(model.train()):
        assert torch.equal(model(ids).logits, tiny.dense()(ids).logits)
    assert all(int(layer.mask_draw) == 0 for layer in masked_layers(model).values())


def test_distillation_loss_is_the_kl():
    student, teacher = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = distillation_loss(student, teacher, temperature=3.0)
    p, q = (torch.softmax(outputs / 3, -1) for outputs in (teacher, student))
    assert torch.allclose(found, 9 * (p * (p / q).log()).sum(-1))
    assert distillation_loss(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"\(3, 4, 5\)"):
        distillation_loss(student, teacher[:1])
    with pytest.raises(ValueError, match="-1"):
        distillation_loss(student, teacher, temperature=-1.0)


def test_distillation_needs_logits(transformers, tmp_path):
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "max_position_embeddings": 8}
    config = transformers.BertConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
    with torch.random.fork_rng(devices=[]):
        model = sp.convert(transformers.BertForQuestionAnswering(config), exclude="qa_outputs.*")
    at = {"start_positions": torch.tensor(1), "end_positions": torch.tensor(2)}
    data = [{"input_ids": torch.arange(8), **at}] * 4
    tiny.trainer(tmp_path, model, data=data, max_steps=1).train()  # without distillation it trains
    before = copy.deepcopy(model.state_dict())
    trainer = tiny.trainer(tmp_path, model, data=data, max_steps=1, distillation=0.25)
    with pytest.raises(ValueError, match=r"distillation is 0\.25.*BertForQuestionAnswering.*start_logits"):
        trainer.train()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
