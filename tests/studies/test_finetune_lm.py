"""finetune-lm: Llama and GPT-2 from their folders, kills, resumption, and errors of one line."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("transformers")

from transformers import GPT2Config, GPT2LMHeadModel

from stochprune.cli import app
from stochprune.language_models import LlamaShape, load_language_model, small_llama, train_tokenizer
from stochprune.language_models.loading import same_generator

pytestmark = pytest.mark.filterwarnings("ignore::stochprune.training.StuckMaskWarning")
LOW_MEMORY = ["--low-memory"] if importlib.util.find_spec("bitsandbytes") else []
TEXT = "".join(f"{i} and {i * i % 7}\n" for i in range(500))
SHORT = ["--context", "16", "--epochs", "2", "--calibration", "2", "--weight-lr", "0.01", "--checkpoint-every", "5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "text.txt").write_text(TEXT)
    tokenizer = train_tokenizer(TEXT, 300)
    llama = small_llama(LlamaShape(width=8, layers=1, heads=2, hidden=12), len(tokenizer), 16, 0)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0}
    with same_generator():
        gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes))
    untied = copy.deepcopy(llama)
    untied.config.tie_word_embeddings = False
    untied.lm_head.weight = torch.nn.Parameter(llama.lm_head.weight.detach() + 0.01)
    for name, model in (("llama", llama), ("gpt2", gpt2), ("untied", untied)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def invoke(folder, out, *options, model="llama", text="text.txt"):
    command = ["finetune-lm", "--model", folder / model, "--data", folder / text, "--out", out, *SHORT, *options]
    return CliRunner().invoke(app, [str(part) for part in command])


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*")}


def results_of(out):
    (path,) = Path(out).glob("finetune-lm-*/results.json")
    return json.loads(path.read_text()), path.parent


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("llama", ("--retrain-epochs", "1")),
        ("untied", ("--pattern", "2:4", "--mode", "frozen", "--distillation", "0.5", *LOW_MEMORY)),
        ("gpt2", ("--sparsity", "0.6", "--estimator", "straight_through")),
    ],
)
def test_a_model_is_pruned_and_exported(folder, tmp_path, model, options):
    done = invoke(folder, tmp_path, *options, model=model)
    assert done.exit_code == 0, done.output
    results, run = results_of(tmp_path)
    errors = {(row["score"], row["arm"]): row["error"] for row in results["rows"]}
    names = ("mask fine-tuning", "magnitude", "wanda", "sparsegpt", "admm")
    assert errors.keys() == {("dense", "none"), *((name, when) for name in names for when in ("cut", "trained"))}
    assert all(1 < error < 2000 for error in errors.values())
    if "frozen" not in options:
        assert errors["mask fine-tuning", "trained"] < min(errors[name, "trained"] for name in names[1:])
    exported = run / results["exported"]
    written = json.loads((exported / "sparsity.json").read_text())
    pruned = [layer["sparsity"] for name, layer in written["layers"].items() if name != "lm_head.weight"]
    assert sum(pruned) / len(pruned) == pytest.approx(0.6 if model == "gpt2" else 0.5, abs=0.2)
    assert written["layers"]["lm_head.weight"]["sparsity"] == 0 and written["pattern"] == (
        "2:4" if options and "2:4" in options else None
    )
    loaded, _ = load_language_model(exported)
    dense, _ = load_language_model(folder / model)
    if "frozen" in options:
        for name, weight in loaded.named_parameters():
            assert weight.equal(torch.where(weight == 0, weight, dense.get_parameter(name))), name
    assert "Perplexity on held-out text" in (run / "tables.md").read_text()


@pytest.mark.parametrize("kills", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_killed_while_it_saves_or_trains_it_ends_as_if_nothing_had_happened(folder, tmp_path, kills):
    command = ["finetune-lm", "--model", str(folder / "llama"), "--data", str(folder / "text.txt"), *SHORT]
    script = Path(__file__).parents[1] / "runs" / "killing.py"
    arguments = [sys.executable, str(script), str(tmp_path), "3", str(kills), json.dumps({"lm": command})]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole, run = results_of(tmp_path / "lm" / "whole")
    files = contents(run / whole["exported"])
    for i in range(kills):
        resumed, other = results_of(tmp_path / "lm" / str(i))
        assert [row["error"] for row in resumed["rows"]] == [row["error"] for row in whole["rows"]]
        assert contents(other / resumed["exported"]) == files
        assert {path.relative_to(other) for path in other.rglob("*")} == {
            path.relative_to(run) for path in run.rglob("*")
        }


def truncate(folder):
    path = folder / "llama" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    ("damage", "options", "words"),
    [
        (truncate, (), "cannot be read"),
        (lambda folder: (folder / "llama" / "tokenizer.json").unlink(), (), "tokeniser"),
        (lambda folder: (folder / "text.txt").write_text(""), (), "is empty"),
        (lambda folder: (folder / "text.txt").write_text("a b c"), (), "too few for one block"),
        (lambda folder: (folder / "text.txt").unlink(), (), "there is no file"),
        (None, ("--context", "17"), "context must be at most 16.* 17"),
        (None, ("--pattern", "2:4", "--sparsity", "0.6"), "pattern 2:4 needs sparsity 0.5, got 0.6"),
        (None, ("--pattern", "rows"), "n:m"),
        (None, ("--sparsity", "1.0"), r"sparsity .*1\.0"),
        (None, ("--retrain-epochs", "3"), "retrain_epochs .* 2, got 3"),
        (None, ("--weight-lr", "1e30"), "nan in epoch 1 .*lower the learning rates"),
        (None, ("--batch-size", "1000"), "drop_last leaves no batch"),
    ],
)
def test_errors_are_one_line(folder, tmp_path, damage, options, words):
    copied = shutil.copytree(folder, tmp_path / "copy")
    if damage is not None:
        damage(copied)
    ended = invoke(copied, tmp_path / "out", *options)
    assert ended.exit_code == 1, ended.output
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("error:"))
    assert re.search(words, line), line
