"""The advice where a run of finetune-lm is out of memory."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from stochprune.language_models import LlamaShape, small_llama
from stochprune.language_models.model_sizes import LanguageModelSizes
from stochprune.studies import memory_advice
from stochprune.studies.memory_advice import memory_advice as advised
from stochprune.training.memory_plan import MemoryConfig, memory_plan

CONFIG = MemoryConfig(weights="fp32", mode="joint", batch_size=64, sequence=16)
FULL = [torch.OutOfMemoryError("full"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    small_llama(LlamaShape(width=16, layers=1, heads=2, hidden=24), 300, 16, 0).save_pretrained(folder)
    return folder


def run(folder, error):
    with advised(folder, CONFIG, torch.device("cpu")):
        raise error


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("batch", "mode", "low"), [(16, "joint", False), (1, "frozen", False), (1, "frozen", True)])
def test_options_that_fit_are_named(folder, monkeypatch, error, batch, mode, low):
    sizes = LanguageModelSizes(folder)
    config = MemoryConfig(weights="fp32", mode=mode, batch_size=batch, sequence=16)
    fits = memory_plan(sizes, memory_advice.low_memory(config) if low else config).peak
    monkeypatch.setattr(memory_advice, "memory_of", lambda device: fits / memory_advice.ROOM)
    others = " --mode frozen" * (mode == "frozen") + " --low-memory" * low
    with pytest.raises(ValueError, match=rf"finetune-lm: out of memory on cpu.*--batch-size {batch}{others}$"):
        run(folder, error)


def test_without_options_that_fit_the_plan_is_named(folder, monkeypatch):
    monkeypatch.setattr(memory_advice, "memory_of", lambda device: 1.0)
    with pytest.raises(ValueError, match=r"--context.*stochprune plan"):
        run(folder, FULL[0])


def test_other_errors_pass(folder):
    with pytest.raises(RuntimeError, match="shapes"):
        run(folder, RuntimeError("shapes do not match"))
