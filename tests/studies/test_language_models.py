"""Studies of language models: arms, perplexities, resumption, tables."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("transformers")

from stochprune import studies
from stochprune.report import study_markdown
from stochprune.runs.progress import ProgressBar
from stochprune.studies.language_models import LanguageArm, LanguageConfig, TextBench

TEXT = """
title: T
job: language_models
data: [words]
models: [llama]
seeds: 1
grid:
  - sparsities: [0.5]
    arms:
      gradual: {method: gradual_magnitude, every: 2, exclude: lm_head.*}
      wanda: {method: one_shot, score: wanda, scope: row, calibration: 2, retrain_epochs: 2}
      "2:4 admm": {method: layer_wise, rule: admm, pattern: "2:4", calibration: 2, retrain_epochs: 2}
      both, distilled:
        {method: mask_finetuning, budget_schedule: cubic, start: dense, keep: 0.99, estimator: expected,
         exclude: lm_head.*, retrain_epochs: 1, distillation: 0.5}
      "2:4 masks": {method: mask_finetuning, pattern: "2:4", mode: frozen, budget: none, score: wanda, calibration: 1}
      "2:4 MaskLLM": {method: maskllm, exclude: lm_head.*}
settings:
  epochs: 2
  parts: 2
  batch_size: 4
  context: 8
  vocabulary: 280
  train_examples: 24
  shape: {width: 8, layers: 1, heads: 2, hidden: 12}
  dense: {epochs: 2, lr: 1e-2}
"""
pytestmark = pytest.mark.filterwarnings("ignore::stochprune.training.StuckMaskWarning")


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "small.yaml"
    path.write_text(TEXT)
    return studies.load(path)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "words").mkdir()
    (folder / "words" / "a.txt").write_text("".join(f"{i} and {i * i % 7}\n" for i in range(400)))
    return folder


@pytest.fixture(scope="module")
def finished(plan, texts, tmp_path_factory):
    return studies.run(plan, data_dir=texts, out=tmp_path_factory.mktemp("runs"))


def test_every_arm_has_a_perplexity_and_its_memory(finished):
    results = json.loads(json.dumps(finished[1]))
    rows = {(row["score"], row["arm"]): row for row in results["rows"]}
    dense = rows.pop(("dense", "none"))
    assert len(rows) == 12 and all(1 < row["error"] < 2 * 280 for row in [dense, *rows.values()])
    assert all(row["tokens_per_second"] > 0 for row in rows.values())
    each = {name: rows[name, "cut"]["bytes_a_weight"] for name, _ in rows}
    # A prunable weight, its logit, gradients and Adam's two moments; the embedding is trained by the first two alone.
    assert each["both, distilled"] > each["gradual"] > each["2:4 MaskLLM"] > each["2:4 masks"] > 4 + 16
    cells = finished[0].parent.glob("cells/*/result.json")
    found = {
        json.loads(path.read_text())["configuration"]["arm"]["name"]: json.loads(path.read_text()) for path in cells
    }
    for name in rows:
        assert found[name[0]]["result"]["sparsity"] == pytest.approx(0.5)
        assert found[name[0]]["result"]["tokens"] == 2 * 3 * 4 * 8


def test_the_tables_say_perplexity(finished):
    text = study_markdown(finished[1])
    assert "Perplexity on held-out text, one seed" in text and "per cent" not in text
    assert "percentage points" not in text and "Bytes for each weight" in text


def test_the_same_call_computes_nothing_again(plan, texts, finished, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("a finished cell ran again")

    monkeypatch.setattr(studies.language_models.LanguageMethods, "_run", fail)
    again = studies.run(plan, data_dir=texts, out=finished[0].parent)
    assert again[1]["rows"] == finished[1]["rows"]


def test_validation_does_not_read_the_held_out_text(tmp_path):
    """A choice made on validation text must not depend on the text of the tables."""
    settings = LanguageConfig(vocabulary=280, context=8, validation=0.2)
    lines = [f"{i} and {i * i % 7}" for i in range(100)]
    first, other, third = tmp_path / "first.txt", tmp_path / "other.txt", tmp_path / "third.txt"
    text = "\n".join(lines)
    cut = round(len(text) * 0.9)
    first.write_text(text)
    other.write_text(text[:cut] + "x" * (len(text) - cut))
    third.write_text(text[: cut - 40] + "x" * 40 + text[cut:])
    benches = [TextBench.of(path, settings, torch.device("cpu"), ProgressBar("")) for path in (first, other, third)]
    assert benches[0].examples == benches[1].examples != benches[2].examples
    held_out = len(benches[0].data.test_x) / (len(benches[0].data.test_x) + len(benches[0].data.train_x))
    assert held_out == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("models: [llama]", "models: [gpt]", "llama.*gpt"),
        ("distillation: 0.5", "distillation: 2", r"distillation.*\[0, 1\].*2"),
        ("context: 8", "context: 0", "context.*0"),
        ("heads: 2", "heads: 3", "width.*6.*8"),
    ],
)
def test_bad_files_are_named(tmp_path, old, new, words):
    (tmp_path / "bad.yaml").write_text(TEXT.replace(old, new))
    with pytest.raises(ValueError, match=words):
        studies.load(tmp_path / "bad.yaml")


def test_no_text_is_named(plan, tmp_path):
    with pytest.raises(ValueError, match="words needs data_dir"):
        studies.run(plan, out=tmp_path)
    (tmp_path / "words").mkdir()
    with pytest.raises(ValueError, match=r"no \.txt file"):
        studies.run(plan, data_dir=tmp_path, out=tmp_path)


@pytest.mark.parametrize(
    ("name", "small"), [("language-models", False), ("language-models", True), ("language-models-10m", False)]
)
def test_the_shipped_studies_load(name, small):
    plan = studies.load(name, small)
    assert plan.data == ("wikitext2",) and plan.models == ("llama",)
    assert all(isinstance(arm, LanguageArm) for block in plan.grid for arm in block.arms)
