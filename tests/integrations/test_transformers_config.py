"""MaskConfig: JSON both ways; what is no configuration is refused by field and value."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file

from tests.integrations.tiny_models import build

REFUSED = {
    "pattern": ["3x", "2:3", "9" * 5000 + ":4", "", 5, None, "columns "],
    "sparsity": [1.0, -0.1, True, "0.5", float("nan")],
    "initial": ["wandas", None, ["magnitude"]],
    "scope": ["all"],
    "keep_kept": [0, 1, 2.5, "0.5", 1 - 1e-12],
    "keep_pruned": [-1, 1e-60],
    "targets": ["*", [1], {"a": 1}, ["x" * 20_000], ["[" * 257], ["*"] * 501, ["x" * 250] * 41],
    "excludes": ["*", [None]],
    "logits_dtype": ["int8", "__class__", 32],
    "estimator": ["magic", 1],
    "temperature": [0, -1.0, float("inf"), "1"],
    "seed": [-1, 2**64, 0.5, "0"],
    "mode": ["both"],
    "quant_method": ["gptq", 3],
    "keep": [0.5],
    "__class__": ["x"],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in REFUSED.items() for value in values])
def test_what_is_no_configuration_is_refused_by_field_and_value(hf, field, value):
    with pytest.raises(ValueError, match=field if field != "pattern" else "MaskConfig"):
        hf.MaskConfig.from_dict({field: value})


@pytest.mark.parametrize(
    "options", [{"pattern": "2:4", "sparsity": 0.25}, {"pattern": "1:4", "estimator": "concrete"}], ids=str
)
def test_what_does_not_go_together_is_refused(hf, options):
    with pytest.raises(ValueError, match=options["pattern"]):
        hf.MaskConfig(**options)


@pytest.mark.parametrize(
    "options", [{}, {"pattern": "2:4", "seed": 2**64 - 1, "targets": ["*.mlp.*"], "mode": "joint"}]
)
def test_a_configuration_comes_back_from_json(hf, options):
    config = hf.MaskConfig(**options)
    written = json.loads(config.to_json_string())
    assert written == config.to_dict() and written["quant_method"] == "stochprune"
    assert hf.MaskConfig.from_dict(written) == config


@pytest.mark.parametrize("change", [{"seed": -5}, {"spareness": 1}, {"pattern": "2:3"}, {"targets": "*"}], ids=str)
def test_a_hostile_config_json_is_refused(transformers, hf, tmp_path, change):
    hf.get_masked_model(build(transformers, "llama")).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    content["quantization_config"] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=next(iter(change)) if "pattern" not in change else "n:m"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(("written", "changed"), [("unstructured", "2:4"), ("2:4", "unstructured"), ("2:4", "1:4")])
def test_a_changed_pattern_is_refused_unless_the_files_name_none(transformers, hf, tmp_path, written, changed):
    config = hf.MaskConfig(pattern=written, targets=["*.mlp.*"])
    model = hf.get_masked_model(build(transformers, "llama", num_hidden_layers=1), config)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    content["quantization_config"]["pattern"] = changed
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{written}.*{changed}"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    for shard in shards:  # as earlier versions wrote them
        save_file(load_file(shard), shard, {"format": "pt"})
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path).config.quantization_config.pattern == changed


def test_a_start_that_needs_batches_is_refused_while_loading(transformers, hf, tmp_path):
    build(transformers, "llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="calibration"):
        config = hf.MaskConfig(sparsity=0.5, initial="wanda")
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
