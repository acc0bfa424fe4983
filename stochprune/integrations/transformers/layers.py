"""The choice of the layers of a model of transformers that get masks, and what they are told."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

from torch import nn

from stochprune.extras import extra
from stochprune.integrations.transformers.config import MaskConfig
from stochprune.integrations.transformers.experts import DOWN, experts_of, has_hook, register_modules, routers_of
from stochprune.nn.add_lora import set_updates, updated_layers
from stochprune.nn.convert import convert
from stochprune.nn.members import masked_layers
from stochprune.nn.obstacles import ALLOW_SUBCLASSES

with extra("hf", "stochprune.integrations.transformers"):
    from transformers import PreTrainedModel

# The names of the output projections of attention.
HEAD_OUTPUTS = (
    "*.o_proj.weight",
    "*att*.out_proj.weight",
    "*att*.dense.weight",
    "*Attention.o.weight",
)
HEAD_SIZES = ("head_dim", "d_kv")
EXCLUDE = "name it in excludes of MaskConfig"


def mask_layers(model: PreTrainedModel, config: MaskConfig) -> None:
    """Replace the chosen layers by masked ones, in place; all weights have the probability ``keep_kept``.

    The streams are those of the names below the base model, so that a head does not change the masks of a body.
    Low-rank updates of the configuration start at 0.
    """
    register_modules(model)
    prefix = model.base_model_prefix
    options: dict[str, Any] = {
        "keep_kept": config.keep_kept,
        "exclude": [*dense_by_default(model, config), *(config.excludes or [])],
        "seed": config.seed,
        "name": "" if hasattr(model, prefix) else prefix,
        "logits_dtype": config.torch_logits_dtype,
    }
    if config.targets != []:
        try:
            _convert_chosen(model, config, options)
        except ValueError as error:  # advises what MaskConfig lacks
            raise ValueError(str(error).replace(ALLOW_SUBCLASSES, EXCLUDE)) from error
    for layer in masked_layers(model).values():
        layer.estimator, layer.temperature = config.estimator, config.temperature
    if config.lora:
        set_updates("MaskConfig: lora", model, config.lora, config.seed)


def _convert_chosen(model: PreTrainedModel, config: MaskConfig, options: dict[str, Any]) -> None:
    if config.pattern == "heads":
        for structure, names in _head_blocks(model, config.targets or HEAD_OUTPUTS).items():
            convert(model, include=names, pattern=structure, **options)
    elif config.pattern == "experts":
        convert(model, include=_whole_experts(model, config.targets or ["*"]), pattern="experts", **options)
    else:
        convert(model, include=config.targets, pattern=config.structure, **options)


def dense_by_default(model: PreTrainedModel, config: MaskConfig) -> list[str]:
    """Return the names of the weights that stay dense unless ``targets`` names them.

    They are the output layer, what is tied to embeddings, heads outside the base model, and routers of experts.
    """
    if config.targets is not None:
        return []
    tied = {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()}
    body = {id(parameter) for parameter in model.base_model.parameters()}
    output = model.get_output_embeddings()
    head = set() if output is None else {id(parameter) for parameter in output.parameters()}
    routers = routers_of(model)
    return [
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name in tied or id(parameter) not in body or id(parameter) in head or name.rpartition(".")[0] in routers
    ]


def set_trainable(model: PreTrainedModel, config: MaskConfig) -> None:
    """Let logits and low-rank updates require a gradient; with ``mode="frozen"``, or with updates, nothing else."""
    if config.mode == "frozen" or config.lora:
        model.requires_grad_(False)
    for layer in masked_layers(model).values():
        layer.mask_logits.requires_grad_()
    for update in updated_layers(model).values():
        update.lora_A.requires_grad_()
        update.lora_B.requires_grad_()


def _whole_experts(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """Return the names of the weights that carry the masks of whole experts."""
    names = [f"{name}.{DOWN}" for name, module in experts_of(model).items() if has_hook(type(module))]
    if not (found := [name for name in names if _matches(name, targets)]):
        there = ", ".join(names) or "none"
        raise ValueError(f"MaskConfig: pattern 'experts' with targets {targets} chooses none of the experts: {there}")
    return found


def _head_blocks(model: PreTrainedModel, targets: Sequence[str]) -> dict[str, list[str]]:
    """Return the output projections of attention by the block of one head in them, ``"OUTxSIZE"``.

    Without these columns a head has no effect.
    """
    found: dict[str, list[str]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and _matches(f"{name}.weight", targets):
            attention = model.get_submodule(name.rpartition(".")[0])
            block = f"{layer.out_features}x{_head_size(attention, model.config.get_text_config())}"
            found.setdefault(block, []).append(f"{name}.weight")
    if not found:
        raise ValueError(
            f"MaskConfig: pattern 'heads' finds no linear output projection of attention in {type(model).__name__}: "
            f"name them in targets, got {targets}"
        )
    return found


def _matches(name: str, targets: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, target) for target in targets)


def _head_size(attention: nn.Module, config: Any) -> int:
    for holder in (attention, config):
        for name in HEAD_SIZES:
            if isinstance(size := getattr(holder, name, None), int):
                return size
    if not (heads := getattr(config, "num_attention_heads", 0)):
        raise ValueError(f"MaskConfig: pattern 'heads' needs attention, {type(config).__name__} has no number of heads")
    return int(config.hidden_size // heads)
