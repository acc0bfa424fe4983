"""The initial mask of a model: a score, cut at the sparsity of the configuration."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stochprune import masks, scores
from stochprune.extras import extra
from stochprune.integrations.transformers.config import CALIBRATED, MaskConfig
from stochprune.integrations.transformers.expert_scores import wanda_of_experts
from stochprune.nn.evaluation import evaluation
from stochprune.nn.layer import MaskedLayer
from stochprune.nn.members import masked_layers, once
from stochprune.nn.selection import wanted
from stochprune.nn.unmasked import silent_about_unmasked
from stochprune.quantised import dequantised

with extra("hf", "stochprune.integrations.transformers"):
    from transformers import PreTrainedModel

INPUTS = ("input_ids", "pixel_values")
Batches = Iterable[Tensor | Mapping[str, Tensor]]


def check_start(op: str, config: MaskConfig, calibrated: bool) -> None:
    """Raise ``ValueError`` if the score of the initial mask needs calibration batches and there are none."""
    if config.starts_pruned and config.initial in CALIBRATED and not calibrated:
        raise ValueError(
            f"{op}: initial {config.initial!r} needs calibration batches: load the model without a MaskConfig, then "
            f"call get_masked_model(model, config, calibration=batches)"
        )


def calibrated_scores(model: PreTrainedModel, config: MaskConfig, batches: Batches) -> Mapping[str, Tensor]:
    """Return the score of the initial mask of a dense model by weight name, in evaluation mode on these batches.

    Raises:
        ValueError: a dictionary without inputs, or with padding, and the errors of the score.
    """
    if config.initial == "snip":
        with evaluation(model), silent_about_unmasked():
            return scores.snip(model, None, [_labelled(batch) for batch in batches])
    pick = _inputs_of_both if getattr(model.config, "is_encoder_decoder", False) else _input
    inputs = [(pick(batch), torch.empty(0)) for batch in batches]
    with evaluation(model), silent_about_unmasked():  # a weight that gets a mask and has no score is an error
        if config.initial == "admm":
            return _admm(model, config, inputs)
        found = scores.by_name(config.initial)(model, None, inputs)
        if config.initial == "wanda":
            found |= wanda_of_experts(model, inputs, _chosen(model, config))
        return found


def _chosen(model: nn.Module, config: MaskConfig) -> list[str]:
    """Return the names of the weights that the patterns of a configuration choose."""
    names = [name for name, _ in model.named_parameters()]
    return [name for name in names if wanted(model, [name], config.targets, config.excludes)]


def _labelled(batch: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return a batch for which a model returns its loss; that of input ids is of the next token."""
    if isinstance(batch, Tensor):
        return {"input_ids": batch, "labels": batch}
    if "labels" not in batch:
        raise ValueError(f"get_masked_model: calibration for initial 'snip' must hold labels, got {', '.join(batch)}")
    return batch


def _admm(model: nn.Module, config: MaskConfig, inputs: list[Any]) -> dict[str, Tensor]:
    """Return 1 where ADMM pruning keeps a weight; it changes weights, so a copy of the model is pruned."""
    n, m = config.n_of_m or (0, 0)
    sparsity = (m - n, m) if m else config.sparsity or 0.0
    kept = scores.admm_prune(copy.deepcopy(model), inputs, sparsity, include=config.targets, exclude=config.excludes)
    return {name: mask.float() for name, mask in kept.items()}


def initial_scores(model: nn.Module, config: MaskConfig) -> Mapping[str, Tensor]:
    """Return the score of the initial mask of a masked model by weight name, if it needs no batches."""
    if config.initial == "random":
        with silent_about_unmasked():
            return scores.random(model, seed=config.seed)
    return Magnitudes({name: layer.weight.detach() for name, layer in masked_layers(model).items()})


class Magnitudes(UserDict[str, Tensor]):
    """The magnitudes of weights, computed when they are read: of a large model one layer's at a time."""

    def __getitem__(self, name: str) -> Tensor:
        return dequantised(self.data[name]).abs()


def set_start(model: nn.Module, config: MaskConfig, score: Mapping[str, Tensor]) -> None:
    """Let the logits be those of ``keep_kept`` and ``keep_pruned`` where the cut of the score keeps and prunes.

    Layers are cut one after the other, unless all compete.

    Raises:
        ValueError: a masked weight without a score, a score of another shape, and the errors of
            :func:`stochprune.masks.from_scores`.
    """
    layers = once(masked_layers(model))
    together = config.scope == "global" and config.n_of_m is None
    for part in [layers] if together else [{name: layer} for name, layer in layers.items()]:
        _cut(part, config, score)


def _cut(layers: Mapping[str, MaskedLayer], config: MaskConfig, score: Mapping[str, Tensor]) -> None:
    grouped: dict[str, Tensor] = {}
    for name, layer in layers.items():
        values = score.get(name)
        if values is None or values.shape != layer.weight.shape:
            got = "none" if values is None else tuple(values.shape)
            raise ValueError(
                f"get_masked_model: the start needs a score of shape {tuple(layer.weight.shape)} for {name}, got "
                f"{got}: exclude this weight, or pass start with a score for it"
            )
        grouped[name] = layer.as_rows(layer.of_logits(values.float()))
    if config.n_of_m is not None:
        kept = masks.n_of_m(grouped, *config.n_of_m)
    else:
        kept = masks.from_scores(grouped, config.sparsity or 0.0, config.scope)
    high, low = torch.logit(torch.tensor([config.keep_kept, config.keep_pruned], dtype=torch.float64)).tolist()
    with torch.no_grad():
        for name, layer in layers.items():
            layer.mask_logits.fill_(low).masked_fill_(layer.from_rows(kept[name]), high)


def _inputs_of_both(batch: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs of an encoder and a decoder; of labels alone the model makes those of the decoder."""
    given = batch.keys() & {"decoder_input_ids", "labels"} if isinstance(batch, Mapping) else None
    if not isinstance(batch, Mapping) or not given:
        raise ValueError(
            "get_masked_model: calibration of a model with an encoder and a decoder must be dictionaries with "
            "decoder_input_ids or labels besides the inputs of the encoder"
        )
    dropped = {"attention_mask", *(["labels"] if "decoder_input_ids" in given else [])}
    inputs = {name: value for name, value in batch.items() if name not in dropped}
    if not inputs.keys() - given:
        raise ValueError("get_masked_model: calibration must hold the inputs of the encoder besides decoder_input_ids")
    _refuse_padding(batch)
    return inputs


def _refuse_padding(batch: Mapping[str, Tensor]) -> None:
    if "attention_mask" in batch and not bool(batch["attention_mask"].all()):
        raise ValueError("get_masked_model: calibration must have no padding: attention_mask has zeros; pack the text")


def _input(batch: Tensor | Mapping[str, Tensor]) -> Tensor:
    if isinstance(batch, Tensor):
        return batch
    name = next((name for name in INPUTS if name in batch), None)
    if name is None:
        raise ValueError(f"get_masked_model: calibration must hold {' or '.join(INPUTS)}, got {', '.join(batch)}")
    _refuse_padding(batch)
    return batch[name]
