"""Checks of a masked checkpoint against its config.json, which may come from anybody.

A part of a mask that is missing, that would be rounded, or that the configuration does not mention is an error. Without
the check transformers drops the latter with a warning, and the model runs without its mask or its update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from stochprune import rng
from stochprune.arguments import shown
from stochprune.extras import extra
from stochprune.integrations.transformers.config import DTYPES, MaskConfig
from stochprune.nn.mask_source import MaskSource

with extra("hf", "stochprune.integrations.transformers"):
    from safetensors import safe_open
    from transformers import PreTrainedModel
    from transformers.modeling_utils import load_state_dict

_INTEGER = {"I64": torch.int64}
STORED = {
    **dict.fromkeys((".mask_seed", ".mask_draw"), _INTEGER),
    **dict.fromkeys((".mask_logits", ".lora_A", ".lora_B"), DTYPES),
}
"""The dtypes of the parts of a mask in a checkpoint, by their names in safetensors."""

_PATTERN = "mask_pattern"
"""The key of the pattern in the metadata of a file of safetensors."""

LOADED = "_is_hf_initialized"
"""transformers sets this attribute on each tensor that it has read."""


def check_used(model: PreTrainedModel, files: Sequence[str]) -> None:
    """Raise ``ValueError`` if files have parts of masks for layers of the model that its configuration leaves plain.

    Args:
        model: masked as config.json says, on the meta device.
        files: of the checkpoint; their tensors are not read. A model that lacks a layer, such as a base model without
            the head, may lack its mask.
    """
    own, modules, prefix = model.state_dict().keys(), dict(model.named_modules()), model.base_model_prefix
    unused = []
    for file in files:
        for stored in load_state_dict(file, map_location="meta"):
            names = {stored, stored.removeprefix(f"{prefix}."), f"{prefix}.{stored}"}  # with a head, or without
            if part := next((part for part in STORED if stored.endswith(part)), None):
                owners = {name.removesuffix(part).partition(".weight_masks.")[0] for name in names}
                if own.isdisjoint(names) and not modules.keys().isdisjoint(owners):
                    unused.append(stored)
    if unused:
        listing = ", ".join(unused[:3]) + (f" and {len(unused) - 3} more" if len(unused) > 3 else "")
        raise ValueError(
            f"from_pretrained: the checkpoint has {listing}, which the quantization_config in its config.json does not "
            f"mention (see its targets, excludes and lora): the configuration is that of another model or was changed"
        )


def pattern_metadata(config: MaskConfig) -> dict[str, str]:
    """Return the metadata of the files of a checkpoint that :func:`check_pattern` reads."""
    return {_PATTERN: config.pattern}


def check_pattern(config: MaskConfig, files: Sequence[str]) -> None:
    """Raise ``ValueError`` if files of safetensors were written with masks of another pattern.

    Logits of single weights and of n:m have the same shape. Files without a pattern, of earlier versions, pass.
    """
    for file in files:
        if not file.endswith(".safetensors"):
            continue
        with safe_open(file, framework="pt") as opened:
            stored = (opened.metadata() or {}).get(_PATTERN, config.pattern)
        if stored != config.pattern:
            raise ValueError(
                f"from_pretrained: the masks in {file} have the pattern {shown(stored)}, but that of the "
                f"quantization_config is {config.pattern!r}: the config.json is that of another model or was changed"
            )


def check_stored(name: str, tensor: Any, dtype: torch.dtype | None) -> None:
    """Raise ``ValueError`` if a part of a mask is stored in another kind of number, or would be loaded with fewer bits.

    Args:
        name: of any tensor in the model.
        tensor: a tensor, or a slice of safetensors, whose values are not read.
        dtype: of the model's tensor.
    """
    allowed = next((allowed for part, allowed in STORED.items() if name.endswith(part)), None)
    if allowed is None:
        return
    kind = tensor.get_dtype() if hasattr(tensor, "get_dtype") else tensor.dtype
    stored = allowed.get(kind, kind)
    if stored not in allowed.values():
        raise ValueError(f"from_pretrained: {name} must be stored as {' or '.join(allowed)}, got {kind}")
    if name.endswith(".mask_logits") and dtype is not None and torch.promote_types(stored, dtype) is not dtype:
        raise ValueError(
            f"from_pretrained: {name} is stored as {stored}, and logits_dtype in config.json would round it to "
            f"{dtype}: change logits_dtype"
        )


def check_loaded(sources: Mapping[str, MaskSource]) -> None:
    """Raise ``ValueError`` if the checkpoint lacked part of a mask, or has a draw outside the contract."""
    for name, layer in sources.items():
        for part in layer.own_state:
            if not getattr(getattr(layer, part), LOADED, False):
                raise ValueError(
                    f"from_pretrained: the checkpoint has no {part} for {name}, which its config.json says is masked: "
                    f"it is damaged, or is not a masked one"
                )
        if not 0 <= int(layer.mask_draw) < rng.DRAW_LIMIT:
            raise ValueError(
                f"from_pretrained: mask_draw of {name} must lie in 0 .. 2^32 - 1, got {int(layer.mask_draw)}"
            )
        layer.mark_loaded()
