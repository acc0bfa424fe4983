"""Mask fine-tuning of a randomly initialised language model as a MemoryConfig describes it, for measurements."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import AutoModelForCausalLM, PreTrainedConfig

import stochprune as sp
from stochprune.training import StochasticRounding, step_in_backward
from stochprune.training.activations import checkpoint_blocks
from stochprune.training.memory_plan import MemoryConfig

Step = Callable[[], float]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build(config: PreTrainedConfig, training: MemoryConfig, device: str) -> tuple[nn.Module, Step]:
    """Return a masked model, and a function that makes a step on random tokens and returns the loss."""
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES.get(training.weights, torch.bfloat16))
    model.requires_grad_(training.mode == "joint")
    _quantise(model, training.weights)
    pattern = None if training.pattern == "unstructured" else training.pattern
    sp.convert(model, pattern=pattern, exclude=["lm_head.weight"], logits_dtype=DTYPES[training.logits])
    model.train()
    if training.checkpointing:
        checkpoint_blocks(model)
    return model, _stepper(model, training, config.vocab_size, device)


def _quantise(model: nn.Module, dtype: str) -> None:
    """Quantise the weights of the blocks by torchao, one after the other."""
    if dtype not in ("int8", "nf4"):
        return
    from torchao.quantization import Int8WeightOnlyConfig, quantize_, to_nf4

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head":
            if dtype == "int8":
                quantize_(layer, Int8WeightOnlyConfig())
            else:
                scales = math.gcd(256, layer.weight.numel() // 64)  # in a block of scales, of which 256 are usual
                layer.weight = nn.Parameter(to_nf4(layer.weight.detach(), 64, scales), requires_grad=False)


def _stepper(model: nn.Module, training: MemoryConfig, vocabulary: int, device: str) -> Step:
    groups = [{"params": [p for p in model.parameters() if p.requires_grad]}]
    make = partial(_optimizer, model=model, training=training)
    optimizer = step_in_backward(groups, make) if training.in_backward else make(groups)
    numbers = torch.Generator().manual_seed(0)
    shape = (training.batch_size, training.sequence)

    def step() -> float:
        total = 0.0
        for _ in range(training.accumulation):
            tokens = torch.randint(vocabulary, shape, generator=numbers).to(device)
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss / training.accumulation
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def _optimizer(groups: list[dict[str, Any]], *, model: nn.Module, training: MemoryConfig) -> Optimizer:
    kind, options = _kind(training.optimizer)
    if any(p.dtype == torch.bfloat16 for group in groups for p in group["params"]):
        return StochasticRounding(groups, kind, model=model, **options)
    return kind(groups, **options)


def _kind(name: str) -> tuple[Callable[..., Optimizer], dict[str, object]]:
    """Return an optimiser and its options. Those of eight bits come from bitsandbytes, that of four from torchao."""
    if name in ("adamw8bit", "lion8bit"):
        import bitsandbytes

        return (bitsandbytes.optim.AdamW8bit if name == "adamw8bit" else bitsandbytes.optim.Lion8bit), {"lr": 1e-3}
    if name == "adamw4bit":
        from torchao.optim import AdamW4bit

        return AdamW4bit, {"lr": 1e-3}
    plain = {"adamw": torch.optim.AdamW, "adafactor": torch.optim.Adafactor, "sgd": torch.optim.SGD}
    if name in plain:
        return plain[name], {"lr": 1e-3, "foreach": False}
    return sp.MaskedAdamW, {"lr": 1e-3, "thresholds": False}
