"""The quantizer that transformers calls in from_pretrained and save_pretrained. It quantises nothing: it masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from stochprune.extras import extra
from stochprune.integrations.transformers.config import METHOD, MaskConfig
from stochprune.integrations.transformers.experts import MaskedExperts
from stochprune.integrations.transformers.layers import mask_layers, set_trainable
from stochprune.integrations.transformers.loaded import (
    check_loaded,
    check_pattern,
    check_stored,
    check_used,
    pattern_metadata,
)
from stochprune.integrations.transformers.start import check_start, initial_scores, set_start
from stochprune.nn.add_lora import updated_layers
from stochprune.nn.mask_source import MaskSource
from stochprune.nn.members import masked_layers
from stochprune.quantised import dequantised, is_quantised

with extra("hf", "stochprune.integrations.transformers"):
    from transformers import PreTrainedModel
    from transformers.quantizers.auto import register_quantizer
    from transformers.quantizers.base import HfQuantizer


@register_quantizer(METHOD)
class MaskQuantizer(HfQuantizer):
    """Masks a model when it is loaded.

    A dense checkpoint is loaded into the dense model, whose layers are then masked. For a masked checkpoint
    (``pre_quantized``), whose config.json has the configuration, the layers are masked on the meta device, so that
    their logits, seeds and draws are loaded like weights.
    """

    quantization_config: MaskConfig
    experts_implementation: dict[str, str | None] | None = None  # what the model had before it was masked

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        if not self.pre_quantized:
            check_start("from_pretrained", self.quantization_config, calibrated=False)

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        if self.pre_quantized:
            check_pattern(self.quantization_config, checkpoint_files or [])
            for target, source in model.all_tied_weights_keys.items():  # so that tied weights get one stream
                holder, _, name = target.rpartition(".")
                setattr(model.get_submodule(holder), name, model.get_parameter(source))
            mask_layers(model, self.quantization_config)
            declare_ties(model)
            check_used(model, checkpoint_files or [])
        return model

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """Return the dtype that a stored tensor is loaded as; refuse a part of a mask that would be rounded."""
        check_stored(converter.target_patterns[0], param, dtype)
        return super().get_new_dtype(converter, param, dtype)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if self.pre_quantized:
            check_loaded(mask_sources(model))
        else:
            mask_layers(model, self.quantization_config)
            if self.quantization_config.starts_pruned:
                set_start(model, self.quantization_config, initial_scores(model, self.quantization_config))
        set_trainable(model, self.quantization_config)
        return attach(model, self)

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Any] | None, dict[str, str]]:
        metadata = {}
        if mask_sources(model):
            model.config.quantization_config = self.quantization_config = current_config(model)
            metadata = pattern_metadata(self.quantization_config)
        else:  # harden cut the masks
            detach(model)
        if not any(is_quantised(layer.weight) for layer in mask_sources(model).values()):
            return None, metadata
        # The numbers of quantised weights: a loaded model has the same outputs, and any program can read them.
        tensors = model.state_dict()
        return {name: dequantised(x).cpu() if is_quantised(x) else x for name, x in tensors.items()}, metadata

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True


def mask_sources(model: nn.Module) -> dict[str, MaskSource]:
    """Return the masked layers and the layers with low-rank updates by weight name."""
    return {**masked_layers(model), **updated_layers(model)}


def current_config(model: PreTrainedModel) -> MaskConfig:
    """Return the configuration of a model with the masks and the low-rank updates that its layers have by now."""
    config = getattr(model.config, "quantization_config", None)
    if not isinstance(config, MaskConfig):
        raise ValueError(f"{type(model).__name__} has no MaskConfig: mask it by get_masked_model, not by convert")
    lora = {name: _settings(layer) for name, layer in updated_layers(model).items()} or None
    if not (layers := masked_layers(model)):  # hardened
        return replace(config, targets=[], lora=lora)
    now = {(layer.estimator, layer.temperature) for layer in layers.values()}
    if len(now) > 1:
        raise ValueError(f"a MaskConfig holds one estimator and temperature, but the layers have {sorted(now)}")
    (estimator, temperature), *_ = now
    return replace(config, estimator=estimator, temperature=temperature, lora=lora)


def _settings(layer: Any) -> dict[str, int | float]:
    return {name: getattr(layer, name) for name in ("rank", "alpha", "dropout", "stream")}


def attach(model: PreTrainedModel, quantizer: MaskQuantizer) -> PreTrainedModel:
    """Let ``save_pretrained`` store the masks of a masked model; return the model."""
    declare_ties(model)
    if any(isinstance(module, MaskedExperts) for module in model.modules()):
        quantizer.experts_implementation = model.get_experts_implementation()
        model.set_experts_implementation(METHOD)
    model.hf_quantizer = quantizer
    model.config.quantization_config = quantizer.quantization_config
    model.quantization_method = METHOD
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = False  # of layers of bitsandbytes, which are plain ones now
    model.is_quantized = False  # its weights are plain numbers, so half(), float() and training are allowed
    return model


def detach(model: PreTrainedModel) -> PreTrainedModel:
    """Remove what :func:`attach` added; return the model."""
    quantizer = getattr(model, "hf_quantizer", None)
    if not isinstance(quantizer, MaskQuantizer):
        return model  # masked by convert
    if quantizer.experts_implementation is not None:
        model.set_experts_implementation(quantizer.experts_implementation)
    quantizer.remove_quantization_config(model)
    model.__dict__.pop("_tied_weights_keys", None)
    for name in [name for name in model.all_tied_weights_keys if name.endswith(".mask_logits")]:
        del model.all_tied_weights_keys[name]
    return model


def declare_ties(model: PreTrainedModel) -> None:
    """Tell transformers which logits are tied: those of tied weights. It stores them once and ties them again."""
    layers = masked_layers(model)
    ties = {
        target.removesuffix("weight") + "mask_logits": source.removesuffix("weight") + "mask_logits"
        for target, source in model.all_tied_weights_keys.items()
        if target in layers and source in layers
    }
    if ties:
        model.all_tied_weights_keys.update(ties)
        model._tied_weights_keys = {**(model._tied_weights_keys or {}), **ties}
