"""export: plain files with exact zeros that transformers loads; and loading that names what is wrong."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import stochprune as sp
from stochprune.language_models import load_language_model
from stochprune.language_models.loading import same_generator


def pruned(model, pattern=None):
    exclude = "lm_head.*"
    scored = sp.scores.magnitude(model, exclude=exclude)
    sp.convert(model, sp.masks.from_scores(scored, 0.5, pattern=pattern), pattern=pattern)
    return sp.harden(model)


@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_transformers_loads_the_exact_zeros(model, data, tokenizer, tmp_path, pattern):
    pruned(model, pattern).config.quantization_config = {"quant_method": "stochprune"}
    folder = sp.export(model, tmp_path / "out", pattern=pattern, tokenizer=tokenizer)
    assert model.config.quantization_config == {"quant_method": "stochprune"}
    loaded, same = AutoModelForCausalLM.from_pretrained(folder), dict(model.named_parameters())
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    for name, weight in loaded.named_parameters():
        assert weight.equal(same[name]), name
        kept = weight.dim() < 2 or name == "model.embed_tokens.weight"
        assert bool((weight == 0).any()) != kept, name
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    assert not {"quantization_config", "sparsity_config"} & config.keys()
    content = json.loads((folder / "sparsity.json").read_text())
    assert content["pattern"] == pattern and content["layers"]["lm_head.weight"]["sparsity"] == 0
    zeros = sum(int((same[name] == 0).sum()) for name in content["layers"] if name in same)
    total = sum(layer["count"] for layer in content["layers"].values())
    assert content["sparsity"] == pytest.approx(zeros / total)
    card = (folder / "README.md").read_text()
    assert f"{content['sparsity']:.2%}" in card and "sparsity_config" in card and ("2:4" in card) == bool(pattern)
    again, read = load_language_model(folder)
    assert torch.equal(again(data.test_x[:2]).logits, model.eval()(data.test_x[:2]).logits)
    assert read.get_vocab() == tokenizer.get_vocab()


def test_a_dense_weight_may_have_zeros_beside_a_pattern(model, tmp_path):
    """Such as the row of a padding token in an embedding, which is the output layer too."""
    with torch.no_grad():
        model.model.embed_tokens.weight[1] = 0
    pruned(model, "2:4")
    content = json.loads((sp.export(model, tmp_path / "out", pattern="2:4") / "sparsity.json").read_text())
    assert 0 < content["layers"]["lm_head.weight"]["sparsity"] < 0.01


def test_an_export_replaces_an_export_and_nothing_else(model, tmp_path):
    pruned(model)
    sp.export(model, tmp_path / "out")
    (tmp_path / "out" / "old.txt").write_text("old")
    sp.export(model, tmp_path / "out")
    assert not (tmp_path / "out" / "old.txt").exists() and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="mine holds other files"):
        sp.export(model, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


def test_a_link_keeps_its_folder_and_the_current_folder_stays(model, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there")
    for _ in range(2):
        assert sp.export(pruned(copy.deepcopy(model)), link) == link and link.is_symlink()
    assert (tmp_path / "there" / "sparsity.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"there", "link"}
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"export: folder \. is the current one"):
        sp.export(pruned(model), ".")


def test_what_cannot_be_exported_is_named(model, tmp_path):
    with pytest.raises(ValueError, match="no weight of the model is zero"):
        sp.export(model, tmp_path / "out")
    with pytest.raises(TypeError, match="PreTrainedModel of transformers, got Linear"):
        sp.export(sp.models.mlp((4, 4), seed=0).fc1, tmp_path / "out")
    pruned(model)
    with pytest.raises(ValueError, match=r"proj\.weight has groups .* 2:4"):
        sp.export(model, tmp_path / "out", pattern="2:4")
    adapted = sp.nn.add_lora(copy.deepcopy(model), 2, exclude="lm_head.*")
    with pytest.raises(ValueError, match=r"SparseLoRALinear.*merge_lora"):
        sp.export(adapted, tmp_path / "out")
    sp.convert(model, exclude="lm_head.*")
    with pytest.raises(ValueError, match="are masked"):
        sp.export(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def folder(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lose_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def other_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "cannot be read"),
        (lose_a_weight, r"model\.norm\.weight"),
        (other_shape, "model"),
        (shutil.rmtree, r"no config\.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "strange"}'), "strange"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"no \.safetensors"),
        (lambda folder: [path.unlink() for path in folder.glob("token*")], "no tokeniser"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "no tokeniser"),
    ],
)
def test_damaged_and_foreign_folders_are_named(folder, damage, words):
    damage(folder)
    with pytest.raises(ValueError, match=words):
        load_language_model(folder)


def test_a_tokenizer_of_another_model_is_named(folder, tokenizer):
    small = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, n_positions=16)
    with same_generator():
        GPT2LMHeadModel(small).save_pretrained(folder)
    with pytest.raises(ValueError, match=f"knows {len(tokenizer)} tokens, but the model 20"):
        load_language_model(folder)
