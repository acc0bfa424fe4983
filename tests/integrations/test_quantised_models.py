"""Models with frozen weights in eight or four bits under masks: trained, saved, loaded, merged."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import stochprune as sp
from stochprune.quantised import PackedWeight, is_quantised
from tests.integrations import tiny
from tests.integrations.tiny_models import build, run

SIZES = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_key_value_heads": 4, "num_hidden_layers": 1}
QUERY = "model.layers.0.self_attn.q_proj"


def bitsandbytes(model, bits):
    library = pytest.importorskip("bitsandbytes")
    for name, layer in [*model.model.named_modules()]:
        if isinstance(layer, nn.Linear):
            shape = layer.in_features, layer.out_features, layer.bias is not None
            if bits == 4:
                made = library.nn.Linear4bit(*shape, compute_dtype=torch.bfloat16, quant_type="nf4")
            else:
                made = library.nn.Linear8bitLt(*shape, has_fp16_weights=False)
            made.load_state_dict(layer.state_dict())
            model.model.set_submodule(name, made.to("cpu"))  # this quantises
    return model


def torchao(model, bits):
    quantization = pytest.importorskip("torchao.quantization")
    for layer in model.model.modules():
        if isinstance(layer, nn.Linear) and bits == 8:
            quantization.quantize_(layer, quantization.Int8WeightOnlyConfig())
        elif isinstance(layer, nn.Linear):
            layer.weight = nn.Parameter(quantization.to_nf4(layer.weight.detach()), requires_grad=False)
    return model


def made(transformers, library, bits):
    model = build(transformers, "llama", **SIZES)
    for parameter in model.parameters():  # the buffers stay in float32, as after from_pretrained
        parameter.data = parameter.data.bfloat16()
    return library(model, bits)


@pytest.fixture(
    params=[(bitsandbytes, 4), (bitsandbytes, 8), (torchao, 4), (torchao, 8)], ids=lambda p: f"{p[0].__name__}{p[1]}"
)
def quantised(request, transformers):
    return made(transformers, *request.param)


def test_masks_over_quantised_weights(transformers, hf, tmp_path, quantised):
    base, dense = copy.deepcopy(quantised), run(quantised)
    model = hf.get_masked_model(quantised, hf.MaskConfig(sparsity=0.5))
    layer = model.get_submodule(QUERY)
    assert is_quantised(layer.weight) and layer.mask_logits.shape == (128, 128)
    with torch.no_grad(), sp.nn.without_masks(model):
        assert (run(model) - dense).abs().mean() < 0.02 * dense.abs().mean()  # the kernels of the library round
    run(model.train()).float().square().mean().backward()
    assert all(each.mask_logits.grad.abs().sum() > 0 for each in sp.nn.masked_layers(model).values())
    copied = copy.deepcopy(model)
    assert torch.equal(run(copied), run(model))

    hf.save_masks(model, tmp_path / "masks")
    again = hf.load_masks(base, tmp_path / "masks")
    assert is_quantised(again.get_submodule(QUERY).weight) and torch.equal(run(again.train()), run(model))

    model.save_pretrained(tmp_path / "whole")  # the numbers, in the dtype of the model
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert plain.get_submodule(QUERY).weight.dtype is torch.bfloat16
    assert torch.equal(run(plain.train()), run(model)) and torch.equal(run(plain.eval()), run(model.eval()))
    model.load_state_dict(plain.state_dict())
    assert is_quantised(layer.weight)
    state = plain.state_dict()
    state[f"{QUERY}.weight"] = state[f"{QUERY}.weight"] + 1
    with pytest.raises((ValueError, RuntimeError), match=r"q_proj\.weight"):
        model.load_state_dict(state)

    hf.merge_and_unload(model)
    weight = model.get_submodule(QUERY).weight
    assert type(weight.data) is torch.Tensor and weight.dtype is torch.bfloat16 and (weight == 0).float().mean() >= 0.5


def test_a_training_resumes_from_its_checkpoint(transformers, hf, tmp_path):
    def masked():
        model = made(transformers, bitsandbytes, 4)
        return hf.get_masked_model(model, hf.MaskConfig(sparsity=0.5))

    whole = tiny.trainer(tmp_path / "whole", masked(), max_steps=2, distillation=0.5)
    whole.train()
    options = {"max_steps": 2, "save_steps": 1, "distillation": 0.5}
    tiny.trainer(tmp_path / "parts", masked(), save_strategy="steps", **options).train()
    resumed = tiny.trainer(tmp_path / "parts", masked(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-1"))
    ours, theirs = (sp.nn.masked_layers(trainer.model) for trainer in (resumed, whole))
    assert all(torch.equal(layer.mask_logits, theirs[name].mask_logits) for name, layer in ours.items())


def test_layers_come_back_if_convert_fails(transformers):
    model = made(transformers, bitsandbytes, 4)
    before = [*model.modules()]
    with pytest.raises(ValueError, match="nobody"):
        sp.convert(model, include="nobody")
    assert [*model.modules()] == before


def test_what_is_not_quantised_yet_is_refused():
    library = pytest.importorskip("bitsandbytes")
    with pytest.raises(ValueError, match=r"0 is not quantised yet"):
        sp.convert(nn.Sequential(library.nn.Linear4bit(64, 64, device="meta")))


def test_a_packed_weight_changes_its_dtype_alone():
    packed = torch.arange(6, dtype=torch.uint8)
    weight = PackedWeight(packed, lambda bits: bits.float() / 2, torch.Size((2, 3)), torch.float32)
    half = weight.to(torch.float16)
    assert half.dtype is torch.float16 and torch.equal(half.dequantize(), (packed / 2).view(2, 3).half())
    assert "6 bytes" in repr(weight) and torch.equal(weight.clone().dequantize(), weight.dequantize())
    with pytest.raises(NotImplementedError, match="dequantise"):
        weight + 1
