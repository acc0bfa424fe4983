"""MaskTrainer says which arguments fit where the memory is full, and loses nothing."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from stochprune.integrations.transformers import memory
from stochprune.integrations.transformers.memory import LiveSizes
from stochprune.language_models.model_sizes import LanguageModelSizes
from stochprune.training.memory_plan import MemoryConfig, memory_plan
from tests.integrations import tiny
from tests.integrations.tiny_models import build, run

SHAPES = {name: (torch.Size((4, 32)), torch.int64) for name in ("input_ids", "labels")}
CONFIG = MemoryConfig(weights="fp32", batch_size=4, sequence=32)


@pytest.mark.parametrize(
    ("name", "change"), [("llama", {}), ("qwen3", {"batch_size": 2}), ("gpt2", {"checkpointing": True})], ids=str
)
def test_sizes_of_a_masked_model_are_those_of_its_configuration(transformers, hf, tmp_path, name, change):
    dense = build(transformers, name)
    dense.save_pretrained(tmp_path)
    model = hf.get_masked_model(dense, hf.MaskConfig(sparsity=0.5))
    config = dataclasses.replace(CONFIG, **change)
    ours, theirs = LiveSizes(model, SHAPES), LanguageModelSizes(tmp_path)
    count = [sum(rows * cols for rows, cols in sizes.masked) for sizes in (ours, theirs)]
    assert count[0] == count[1] and ours.other == theirs.other
    assert memory_plan(ours, config).peak == pytest.approx(memory_plan(theirs, config).peak, rel=0.05)
    run(model)  # the copies were made without values; the model itself is as before


def full(model, step: int):
    """Let the forward pass of a step ask for an exabyte."""
    passes = itertools.count(1)

    def hook(*_):
        if next(passes) > step:
            torch.empty(2**60)

    return model.register_forward_pre_hook(hook)


@pytest.mark.parametrize(
    ("room", "wanted"), [(0.999, "step_in_backward=True"), (1e-9, "shorter sequences"), (9, "something else.*use ")]
)
def test_arguments_that_fit_are_named(hf, tmp_path, monkeypatch, room, wanted):
    trainer = tiny.trainer(tmp_path, gradient_accumulation_steps=1, max_steps=4, save_strategy="steps", save_steps=2)
    shapes = {name: (torch.Size((2, tiny.LENGTH)), torch.int64) for name in ("input_ids", "labels")}
    plan = memory_plan(LiveSizes(trainer.model, shapes), MemoryConfig(weights="fp32", mode="joint", batch_size=2))
    monkeypatch.setattr(memory, "memory_of", lambda device: room * plan.peak / memory.ROOM)
    hook = full(trainer.model, step=3)
    with pytest.raises(torch.OutOfMemoryError, match=rf"MaskTrainer.*{wanted}.*checkpoint-2") as caught:
        trainer.train()
    assert caught.value.__cause__ is not None and all(p.grad is None for p in trainer.model.parameters())
    hook.remove()
    whole = tiny.trainer(tmp_path / "whole", max_steps=4)
    whole.train()
    resumed = tiny.trainer(tmp_path, max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    tiny.assert_equal(resumed.model, whole.model)


def test_other_errors_pass(hf, tmp_path):
    trainer = tiny.trainer(tmp_path)
    trainer.model.register_forward_pre_hook(lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        trainer.train()
