"""Scores take the batches of models of transformers: dictionaries for which the model returns its loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stochprune as sp
from stochprune.data import BatchLoss
from stochprune.training import LoopOptions
from tests.integrations.tiny_models import IDS, build

PADDED = torch.ones_like(IDS)
PADDED[1, 5:] = 0
CLASSES = torch.tensor([0, 1])
SMALL_T5 = {"d_model": 32, "num_layers": 1}
BATCHES = {  # of two examples each
    "llama": {"input_ids": IDS, "attention_mask": PADDED, "labels": IDS},
    "t5": {"input_ids": IDS, "attention_mask": PADDED, "labels": IDS},
    "bert": {"input_ids": IDS, "attention_mask": PADDED, "labels": CLASSES},
}
OPTIONS = {
    "snip": {},
    "grasp": {"temperature": 1.0},
    "prospr": {"lr": 1e-2, "steps": 1},
    "wanda": {},
    "sparsegpt": {},
}


def made(transformers, name: str, **options) -> nn.Module:
    return build(transformers, name, **(SMALL_T5 if name == "t5" else {"num_hidden_layers": 1}), **options)


@pytest.mark.parametrize("name", BATCHES)
def test_snip_of_dictionaries_is_that_of_the_gradient(transformers, name):
    model, batch = made(transformers, name), BATCHES[name]
    found = sp.scores.snip(model, None, [batch])
    assert all(parameter.grad is None for parameter in model.parameters())
    model(**batch).loss.backward()
    for weight, score in found.items():
        parameter = model.get_parameter(weight)
        assert score.any() and torch.allclose(score, (parameter * parameter.grad).abs(), rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize(("name", "score"), [*(("bert", score) for score in OPTIONS), ("t5", "wanda")])
def test_dictionaries_pairs_and_hooks_give_the_same_score(transformers, name, score):
    model, batch = made(transformers, name), BATCHES[name]
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    if name == "t5":
        inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(batch["labels"])

    def loss(outputs, y):
        return F.cross_entropy(outputs.logits.flatten(0, -2), y.flatten())

    def of(loss_fn, *batches):
        return sp.scores.by_name(score)(model, loss_fn, batches, **OPTIONS[score])

    ways = [
        of(None, batch),
        of(loss, (inputs, batch["labels"])),
        of(BatchLoss(hook=lambda model, batch: model(**batch["text"]).loss), {"text": batch}),
    ]
    for weight, value in ways[0].items():
        limit = 1e-4 * value.abs().max()
        assert value.any() and all((value - other[weight]).abs().max() <= limit for other in ways[1:])


def test_second_derivatives_of_attention(transformers):
    fused, plain = (made(transformers, "llama", attn_implementation=kind) for kind in ("sdpa", "eager"))
    found, expected = (sp.scores.grasp(model, None, [BATCHES["llama"]], temperature=1.0) for model in (fused, plain))
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()))


def test_gradient_checkpointing_is_without_effect_or_refused(transformers):
    plain, again = (made(transformers, "llama").train() for _ in range(2))
    again.activation_checkpointing_enable()
    options = {"sparsity": 0.5, "rounds": 2}
    expected, found = (sp.scores.force(model, None, [BATCHES["llama"]], **options) for model in (plain, again))
    assert all(torch.equal(found[name], score) for name, score in expected.items())
    with pytest.raises(RuntimeError, match=r"activation_checkpointing_disable"):
        sp.scores.grasp(again, None, [BATCHES["llama"]], temperature=1.0)


@pytest.mark.parametrize("batch", [BATCHES["bert"], (IDS, CLASSES)], ids=["by the model", "by a hook"])
def test_a_temperature_that_the_loss_cannot_have(transformers, batch):
    hook = None if isinstance(batch, dict) else lambda model, batch: model(batch[0], labels=batch[1]).loss
    with pytest.raises(ValueError, match=r"grasp.*temperature 200.*temperature=1"):
        sp.scores.grasp(made(transformers, "bert"), BatchLoss(hook=hook, argument="grasp: batches"), [batch])


def test_dictionaries_without_labels_are_refused(transformers):
    with pytest.raises(TypeError, match=r"snip: batches: batch 0.*input_ids.*labels.*BatchLoss"):
        sp.scores.snip(made(transformers, "bert"), None, [{"input_ids": IDS}])


def test_synflow_takes_embeddings_and_an_attention_mask(transformers):
    model = made(transformers, "bert")
    batch = {"inputs_embeds": torch.full((2, 8, 32), 7.0), "attention_mask": PADDED, "labels": CLASSES}
    scores = sp.scores.synflow(model, None, [batch], rounds=1)
    ones = {"inputs_embeds": torch.ones(1, 8, 32), "attention_mask": PADDED[:1]}
    assert scores.keys() == sp.scores.snip(model, None, [BATCHES["bert"]]).keys()
    assert all(
        torch.equal(scores[name], value) for name, value in sp.scores.synflow(model, None, [ones], rounds=1).items()
    )
    with pytest.raises(ValueError, match=r"int64.*inputs_embeds"):
        sp.scores.synflow(model, None, [BATCHES["bert"]])


@pytest.mark.parametrize("score", ["snip", "wanda"])
def test_a_training_scores_the_batches_that_it_trains_on(transformers, score):
    model, batch = made(transformers, "bert"), BATCHES["bert"]
    options = LoopOptions(forward_loss=lambda model, batch: model(**batch["text"]).loss)
    config = sp.training.OneShotConfig(sparsity=0.5, epochs=1, score=score, exclude="classifier.*")
    found = sp.training.prune(model, [{"text": batch}], config, options=options)
    assert found.masks and sp.masks.sparsity(found.masks) == pytest.approx(0.5, abs=0.01)
