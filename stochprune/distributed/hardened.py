"""The weights of a pruned model that is split over processes, and its export without the whole model in one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save

from stochprune.arguments import checked
from stochprune.extras import extra
from stochprune.nn.harden import masks_to_cut
from stochprune.nn.layer import MaskedLayer
from stochprune.nn.masked_module import MaskedParameter
from stochprune.nn.members import layers_of


@checked
def hardened_state(model: nn.Module, sparsity: float | None = None, scope: str = "global") -> dict[str, Tensor]:
    """Return the state dict of the hardened model: plain names, pruned weights exactly 0, each tensor split as before.

    The masks are those of :func:`stochprune.harden`. No weight leaves its process, but for the layers whose rows are
    split with scope ``"row"``. The model itself does not change, and can go on training. The state loads into a dense
    model that is sharded in any way::

        state = sp.distributed.hardened_state(model, sparsity=0.9)
        set_model_state_dict(dense, state)  # of torch.distributed.checkpoint.state_dict

    Args:
        model: a masked model, from :func:`stochprune.distributed.shard`, ``parallelize_module`` or in one process.
        sparsity, scope: as for :func:`stochprune.harden`.

    Returns:
        Tensors by name, DTensors where the model's are.

    Raises:
        TypeError, ValueError: as for :func:`stochprune.harden`.
    """
    state: dict[str, Any] = model.state_dict()  # FSDP frees here what a forward pass has gathered
    masks = masks_to_cut(model, sparsity, scope)
    layers = layers_of("hardened_state", model)
    by_weight = {id(layers[name].weight): mask for name, mask in masks.items()}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, MaskedLayer):
            prefix = f"{name}." if name else ""
            kept = () if isinstance(module, MaskedParameter) else ("weight", "bias")
            for key in [key for key in state if key.startswith(prefix) and key[len(prefix) :] not in kept]:
                del state[key]
            state[module.weight_name(name)] = module.hardened_weight(by_weight[id(module.weight)])
    return state


@checked
def save_hardened(model: nn.Module, folder: str | Path, sparsity: float | None = None, scope: str = "global") -> Path:
    """Write the weights of :func:`hardened_state` as one plain safetensors file, ``model-00001-of-00001.safetensors``.

    Every process writes its parts, and the first joins the files on disk (``HuggingFaceStorageWriter`` of torch), so no
    process holds the model. All processes must call it, with a folder that they share.

    Args:
        folder: new or empty. The parts of the processes stay in ``folder/sharded``.

    Returns:
        The folder.

    Raises:
        MissingExtraError: safetensors is not installed (extra: files).
        ValueError: the folder has files, or as for :func:`stochprune.harden`.
    """
    with extra("files", "save_hardened"):
        import safetensors  # noqa: F401  # what the writer needs
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"save_hardened: folder {folder} must be new or empty: choose another one")
    if dist.is_initialized():
        dist.barrier()  # nobody writes before all have looked
    state = {name: tensor.contiguous() for name, tensor in hardened_state(model, sparsity, scope).items()}
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True, enable_consolidation=True)
    save(state, storage_writer=writer, no_dist=not dist.is_initialized())
    return folder
