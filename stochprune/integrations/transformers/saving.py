"""save_masks and load_masks: small files with the masks of a model alone, beside its dense base model.

A folder holds ``mask_config.json``, with the :class:`MaskConfig`, the seed and the draw of each layer, and a digest of
the names and shapes of the base model's weights; and ``masks.safetensors``, with the logits by weight name, and the
low-rank updates by parameter name. The latter names the digest of the former, so that files of two moments do not pass
for a pair.
"""

from __future__ import annotations

import copy
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stochprune import rng
from stochprune.arguments import checked
from stochprune.extras import extra
from stochprune.integrations.transformers.config import DTYPES, MaskConfig
from stochprune.integrations.transformers.layers import mask_layers, set_trainable
from stochprune.integrations.transformers.quantizer import (
    MaskQuantizer,
    attach,
    current_config,
    mask_sources,
)
from stochprune.nn.add_lora import updated_layers
from stochprune.nn.convert import unpack
from stochprune.nn.mask_source import MaskSource
from stochprune.nn.members import layers_of, masked_layers, once
from stochprune.nn.restored import restored_on_error
from stochprune.runs.digests import json_digest
from stochprune.runs.files import CheckpointError, read_json, replacing, write_json

with extra("hf", "stochprune.integrations.transformers"):
    from transformers import PreTrainedModel

FORMAT, VERSION = "stochprune-masks", 1
INDEX, LOGITS = "mask_config.json", "masks.safetensors"


@checked
def save_masks(model: PreTrainedModel, folder: str | Path) -> None:
    """Write the masks of a model, and its low-rank updates, to a folder, without its weights.

    Args:
        model: from ``from_pretrained`` with a :class:`MaskConfig`, or from :func:`get_masked_model`. If its weights are
            trained too (``mode="joint"``), save them by ``save_pretrained``.
        folder: is made if it does not exist; files of an earlier call are replaced.

    Raises:
        MissingExtraError: safetensors is not installed.
        ValueError: the model is not masked.
        OSError: a file cannot be written.
    """
    with extra("files", "save_masks"):
        from safetensors.torch import save_file

    sources = mask_sources(model) or layers_of("save_masks", model)
    index = {
        "format": FORMAT,
        "version": VERSION,
        "config": current_config(model).to_dict(),
        "base": _base_digest(model),
        "layers": {name: _address(layer) for name, layer in sources.items()},
    }
    tensors = {name: tensor.detach().contiguous() for name, tensor in _own_tensors(model).items()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    with replacing(Path(folder) / LOGITS) as file:
        save_file(tensors, file.name, {"format": FORMAT, "index": json_digest(index)})
    write_json(Path(folder) / INDEX, index)


@checked
def load_masks(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """Mask a dense model with the masks of a folder, in place; the next forward pass samples the next mask.

    Args:
        model: the base model, dense, with weights of the same names and shapes. Their values are not compared.
        folder: of :func:`save_masks`. It may come from anybody: names, shapes and dtypes are checked before memory is
            allocated, no code in it is run, and the model changes only if all of it fits.

    Returns:
        The model, as from :func:`get_masked_model`.

    Raises:
        MissingExtraError: safetensors is not installed.
        CheckpointError: a file does not exist, or is truncated, damaged or of another kind.
        ValueError: the model is masked already, or the masks are those of another base model.
    """
    with extra("files", "load_masks"):
        from safetensors import SafetensorError, safe_open

    if mask_sources(model):
        raise ValueError(f"load_masks: {type(model).__name__} is masked already: load its dense base model")
    with restored_on_error(model):
        return _load(unpack(model), folder, safe_open, SafetensorError)


def _load(model: PreTrainedModel, folder: str | Path, safe_open: Any, error_kind: type[Exception]) -> PreTrainedModel:
    index = _read_index(Path(folder) / INDEX)
    if index["base"] != _base_digest(model):
        raise ValueError(f"load_masks: {folder} has masks of another base model: weights differ in names or shapes")
    config = MaskConfig.from_dict(index["config"])
    expected = _skeleton(model)
    mask_layers(expected, config)
    path = Path(folder) / LOGITS
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would block
            raise CheckpointError(f"{path} is not a regular file")
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("index") != json_digest(index):
                raise CheckpointError(f"{path} does not belong to {INDEX} beside it: save the masks again")
            _check_names(index["layers"], mask_sources(expected), str(Path(folder) / INDEX))
            _check_names(file.keys(), own := _own_tensors(expected), str(path))
            for name, tensor in own.items():
                found = file.get_slice(name)
                if (tuple(found.get_shape()), DTYPES.get(found.get_dtype())) != (tensor.shape, tensor.dtype):
                    raise CheckpointError(f"{path}: {name} must be {tensor.dtype} {tuple(tensor.shape)}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (error_kind, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read, is truncated or damaged: {error}") from error
    if bad := [name for name, values in tensors.items() if values.isnan().any()]:
        raise CheckpointError(f"{path}: {bad[0]} has NaN")
    mask_layers(model, config)
    _fill(model, tensors, index["layers"])
    set_trainable(model, config)
    return attach(model, MaskQuantizer(config, pre_quantized=False))


def _read_index(path: Path) -> dict[str, Any]:
    index = read_json(path, "file of masks")
    if (index.get("format"), index.get("version")) != (FORMAT, VERSION):
        raise CheckpointError(f"{path} is of another program or version, this one reads {FORMAT} {VERSION}")
    try:
        MaskConfig.from_dict(index["config"])
        for address in index["layers"].values():
            rng.check_address("load_masks", seed=address["seed"], draw=address["draw"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return index


def _check_names(found: Any, expected: Mapping[str, Any], where: str) -> None:
    if differing := sorted(set(found) ^ set(expected)):
        raise CheckpointError(f"{where}: its layers and those that its configuration masks differ in {differing[0]}")


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the logits by weight name, tied ones once, and the low-rank updates by parameter name."""
    own: dict[str, Tensor] = {name: layer.mask_logits for name, layer in once(masked_layers(model)).items()}
    for name, layer in updated_layers(model).items():
        prefix = name.removesuffix("weight")
        own |= {f"{prefix}lora_A": layer.lora_A, f"{prefix}lora_B": layer.lora_B}
    return own


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], addresses: Mapping[str, Any]) -> None:
    with torch.no_grad():
        for name, tensor in _own_tensors(model).items():
            tensor.copy_(tensors[name])
        for name, layer in mask_sources(model).items():
            layer.mask_seed.fill_(rng.as_int64(addresses[name]["seed"]))
            layer.mask_draw.fill_(addresses[name]["draw"])


def _address(layer: MaskSource) -> dict[str, int]:
    return {"seed": int(layer.mask_seed) % rng.SEED_LIMIT, "draw": int(layer.mask_draw)}


def _base_digest(model: nn.Module) -> str:
    """Return a digest of the names and shapes of a model's weights, the same for the dense and the masked model."""
    own = {id(tensor) for tensor in _own_tensors(model).values()}
    named = model.named_parameters(remove_duplicate=False)
    return json_digest({name: list(parameter.shape) for name, parameter in named if id(parameter) not in own})


def _skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model on the meta device."""
    twins: dict[int, Tensor] = {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    for weight in model.parameters():  # layers take parameters alone, not plain tensors
        empty = torch.empty(weight.shape, dtype=weight.dtype, device="meta")  # of quantised ones too
        twins[id(weight)] = nn.Parameter(empty, requires_grad=weight.requires_grad)
    return copy.deepcopy(model, twins)
