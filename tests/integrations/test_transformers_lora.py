"""Masked models with low-rank updates are saved and loaded bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import stochprune as sp
from stochprune.runs.files import CheckpointError, read_json, write_json
from tests.integrations import tiny
from tests.integrations.tiny_models import build, run, same_state

Q = "model.layers.0.self_attn.q_proj.weight"


def adapted(transformers, hf, kind: str, dropout: float = 0.25, **options):
    """A Llama with updates under learnt masks and one under a fixed mask, or under fixed masks alone."""
    model = build(transformers, "llama", **options)
    if kind == "pruned":  # by any program
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[:, ::2] = 0
        hf.get_masked_model(model, hf.MaskConfig(targets=[]))
    else:
        hf.get_masked_model(model, hf.MaskConfig(sparsity=0.5, excludes=["*.down_proj.weight"]))
    sp.nn.add_lora(model, rank=3, alpha=2.0, dropout=dropout, exclude=["*.o_proj.*", "*.v_proj.*"], seed=7)
    sp.nn.add_lora(model, rank=2, include="*.v_proj.*")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.copy_(torch.linspace(-0.3, 0.2, parameter.numel()).view_as(parameter))
    run(model.train())  # draws advance
    if kind == "hardened":  # updates under learnt masks are merged, that of down_proj stays
        sp.harden(model)
    return model


@pytest.mark.parametrize("kind", ["masked", "pruned", "hardened"])
@pytest.mark.parametrize("way", ["save_pretrained", "save_masks"])
def test_updates_come_back_bit_for_bit(transformers, hf, tmp_path, kind, way):
    model = adapted(transformers, hf, kind)
    if way == "save_pretrained":
        model.save_pretrained(tmp_path)
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    else:
        base = build(transformers, "llama")
        plain = {name: value for name, value in model.state_dict().items() if name in base.state_dict()}
        base.load_state_dict(plain)
        hf.save_masks(model, tmp_path)
        again = hf.load_masks(base, tmp_path)
    assert same_state(again, model) and [type(m) for m in again.modules()] == [type(m) for m in model.modules()]
    trained = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (again, model)]
    assert trained[0] == trained[1] != set()
    assert torch.equal(run(again.train()), run(model.train()))  # the next masks, and the next dropout
    assert torch.equal(run(again.eval()), run(model.eval()))
    assert torch.equal(run(hf.merge_and_unload(again)), run(hf.merge_and_unload(model)))


def test_sixteen_bits(transformers, hf, tmp_path):
    model = adapted(transformers, hf, "masked").bfloat16()
    for layer in sp.nn.masked_layers(model).values():
        layer.mask_logits.data = layer.mask_logits.data.float()
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    layer = again.get_submodule(Q.removesuffix(".weight"))
    assert layer.weight.dtype is torch.bfloat16 and layer.lora_A.dtype is torch.float32  # as add_lora makes them
    assert torch.equal(layer.lora_A, model.get_submodule(Q.removesuffix(".weight")).lora_A.float())


def test_a_training_resumes_from_its_checkpoint(transformers, hf, tmp_path):
    def made():
        return adapted(transformers, hf, "masked", vocab_size=128)

    whole = tiny.trainer(tmp_path / "whole", made(), max_steps=4)
    whole.train()
    tiny.trainer(tmp_path / "parts", made(), max_steps=4, save_strategy="steps", save_steps=2).train()
    resumed = tiny.trainer(tmp_path / "parts", made(), max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    tiny.assert_equal(resumed.model, whole.model)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "parts" / "checkpoint-4")
    assert same_state(loaded, whole.model)


REFUSED = {
    "rank": {"rank": 0, "alpha": 1.0, "dropout": 0.0, "stream": 0},
    "alpha": {"rank": 1, "alpha": "1", "dropout": 0.0, "stream": 0},
    "dropout": {"rank": 1, "alpha": 1.0, "dropout": 1.0, "stream": 0},
    "stream": {"rank": 1, "alpha": 1.0, "dropout": 0.0, "stream": 2**31},
    "lora": {"rank": 1},
}


@pytest.mark.parametrize("part", REFUSED)
def test_hostile_settings_are_refused(hf, part):
    with pytest.raises(ValueError, match=part):
        hf.MaskConfig.from_dict({"lora": {Q: REFUSED[part]}})


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "nobody.weight", "", "model.norm.weight", Q[:-1]])
def test_updates_of_what_is_no_linear_layer_are_refused(transformers, hf, tmp_path, name):
    adapted(transformers, hf, "masked").save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["quantization_config"]["lora"][name] = content["quantization_config"]["lora"][Q]
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="lora"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_checkpoint_without_an_update_is_refused(transformers, hf, tmp_path):
    model = adapted(transformers, hf, "masked")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[Q.replace("weight", "lora_B")]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lora_B"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    hf.save_masks(model, tmp_path)
    index = read_json(tmp_path / "mask_config.json", "index")
    index["config"]["lora"][Q]["rank"] = 2
    write_json(tmp_path / "mask_config.json", index)
    with pytest.raises(CheckpointError, match="masks"):
        hf.load_masks(build(transformers, "llama"), tmp_path)


CHANGED = {  # of quantization_config, and the part of the checkpoint that it leaves without a layer
    "lora": ({"lora": None}, "lora_A|mask_"),
    "one of lora": ({"lora": "drop"}, "q_proj.lora_A"),
    "excludes": ({"excludes": ["*.q_proj.weight"], "lora": None}, "lora_A|mask_"),
    "targets": ({"targets": ["*.up_proj.weight"], "lora": None}, "lora_A|mask_"),
    "logits_dtype": ({"logits_dtype": "bfloat16"}, "float32.*bfloat16.*logits_dtype"),
}


@pytest.mark.parametrize("change", CHANGED)
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_a_configuration_that_leaves_parts_of_the_checkpoint_unused_is_refused(
    transformers, hf, tmp_path, change, safe
):
    adapted(transformers, hf, "masked").save_pretrained(tmp_path)
    if not safe:
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    content = json.loads((tmp_path / "config.json").read_text())
    fields, named = CHANGED[change]
    if fields.get("lora") == "drop":
        fields = {"lora": {name: of for name, of in content["quantization_config"]["lora"].items() if name != Q}}
    content["quantization_config"].update(fields)
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"from_pretrained.*({named})"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_base_model_may_leave_the_mask_of_the_head_out(transformers, hf, tmp_path):
    model = build(transformers, "llama", tie_word_embeddings=False)
    hf.get_masked_model(model, hf.MaskConfig(targets=["*"])).save_pretrained(tmp_path)
    base = transformers.AutoModel.from_pretrained(tmp_path)
    assert {f"model.{name}" for name in sp.nn.masked_layers(base)} == {*sp.nn.masked_layers(model)} - {"lm_head.weight"}
