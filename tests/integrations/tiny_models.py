"""Tiny models of transformers with random weights, by name."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import stochprune as sp

IDS = (torch.arange(16) * 7 % 64).view(2, 8)
PIXELS = torch.linspace(-1, 1, 2 * 3 * 16 * 16).sin().view(2, 3, 16, 16)
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
TEXT = {**SMALL, "vocab_size": 64, "intermediate_size": 48, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
VISION = {**SMALL, "intermediate_size": 48, "image_size": 16, "patch_size": 8}
DECODER = {**TEXT, "num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {  # the model, its configuration, and the arguments of that
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**DECODER, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**DECODER, "tie_word_embeddings": False}),  # it has biases
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", DECODER),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {**TEXT, "n_positions": 16}),
    "falcon": ("FalconForCausalLM", "FalconConfig", TEXT),
    "mamba": ("MambaForCausalLM", "MambaConfig", {**TEXT, "state_size": 4}),
    "bert": ("BertForSequenceClassification", "BertConfig", {**TEXT, "max_position_embeddings": 16}),
    "t5": ("T5ForConditionalGeneration", "T5Config", {**TEXT, "d_kv": 8, "d_ff": 48, "decoder_start_token_id": 0}),
    "vit": ("ViTForImageClassification", "ViTConfig", VISION),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {**DECODER, **EXPERTS, "moe_intermediate_size": 16, "num_experts": 4},
    ),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**DECODER, **EXPERTS}),
    "gpt_oss": ("GptOssForCausalLM", "GptOssConfig", {**DECODER, **EXPERTS}),
    "llama4": ("Llama4ForCausalLM", "Llama4TextConfig", {**DECODER, **EXPERTS, "intermediate_size_mlp": 48}),
}


def build(transformers: ModuleType, name: str, **options: Any) -> nn.Module:
    """Return a model with weights that depend on its name alone, in evaluation mode."""
    model, config, arguments = MODELS[name]
    made = getattr(transformers, model)(getattr(transformers, config)(**{**arguments, **options}, use_cache=False))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2, generator=generator)
    return made.eval()


def run(model: nn.Module) -> Tensor:
    """Return the logits of a model."""
    if hasattr(model.config, "image_size"):
        return model(pixel_values=PIXELS).logits
    return model(input_ids=IDS, **({"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {})).logits


def same_state(model: nn.Module, other: nn.Module) -> bool:
    """Return True if two models have the same names, dtypes and bits."""
    a, b = model.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def masks(model: nn.Module, draw: int) -> dict[str, Tensor]:
    return {name: layer.mask(draw) for name, layer in sp.nn.masked_layers(model).items()}
