"""Linear layers of bitsandbytes, whose weights have four or eight bits, as plain layers with packed weights."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stochprune.quantised import PackedWeight


def unpacked_layers(model: nn.Module) -> dict[nn.Module, nn.Linear]:
    """Return a plain layer for each ``Linear4bit`` and ``Linear8bitLt`` of bitsandbytes in a model.

    The plain layers have the same integers, which are dequantised in each pass; the outliers that ``Linear8bitLt``
    computes in 16 bits are not treated apart.

    Raises:
        ValueError: a layer that is not quantised yet, because it was not moved to its device.
    """
    # The layers compute in the dtype of their input, whatever the numbers were before.
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float16)
    readers = {"Linear4bit": _four_bits, "Linear8bitLt": _eight_bits}
    found = {}
    for name, layer in model.named_modules():
        kind = type(layer)
        if kind.__name__ in readers and kind.__module__.startswith("bitsandbytes."):
            found[layer] = _plain(layer, readers[kind.__name__](name, layer, dtype))
    return found


def _plain(layer: Any, weight: PackedWeight) -> nn.Linear:
    with torch.device("meta"):  # parameters are set below
        made = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    made.weight, made.bias = nn.Parameter(weight, requires_grad=False), layer.bias
    return made.train(layer.training)


def _four_bits(name: str, layer: Any, dtype: torch.dtype) -> PackedWeight:
    state = layer.weight.quant_state
    if state is None:
        raise ValueError(_early(name))
    read = partial(_read_four_bits, state)
    return PackedWeight(layer.weight.data, read, torch.Size(state.shape), dtype)


def _eight_bits(name: str, layer: Any, dtype: torch.dtype) -> PackedWeight:
    weight = layer.weight
    scales = weight.SCB if weight.SCB is not None else layer.state.SCB
    if scales is None:
        raise ValueError(_early(name))
    return PackedWeight(weight.data, partial(_read_eight_bits, scales), weight.shape, dtype)


def _read_four_bits(state: Any, packed: Tensor) -> Tensor:
    numbers: Tensor = importlib.import_module("bitsandbytes.functional").dequantize_4bit(packed, state)
    return numbers


def _read_eight_bits(scales: Tensor, packed: Tensor) -> Tensor:
    return packed.float() * (scales.float()[:, None] / 127)


def _early(name: str) -> str:
    return f"convert: {name} is not quantised yet: move the model to its device first, which quantises it"
