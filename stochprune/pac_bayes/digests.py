"""Digests of networks: of every tensor that a network drawn from one depends on."""

from __future__ import annotations

from torch import Tensor, nn

from stochprune.nn.mask_source import MaskSource
from stochprune.runs.digests import printed, tensor_digest

ADDRESS = ("mask_seed", "mask_draw")
"""Buffers that choose which network is sampled next; the distribution does not depend on them."""
_PRIOR = "prior_logits"
"""A masked layer's buffer for its divergence, on which no output depends."""


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors on which a model's outputs may depend, by name: its state and its unsaved buffers."""
    buffers = dict(model.named_buffers(remove_duplicate=False))
    return {n: b for n, b in buffers.items() if n.rpartition(".")[2] != _PRIOR} | model.state_dict(keep_vars=True)


def tensor_digests(model: nn.Module) -> dict[str, str]:
    """Return the digest of dtype, shape and bytes of each tensor by name, without the addresses of draws."""
    tensors = sorted(tensors_of(model).items())
    return {name: tensor_digest(value) for name, value in tensors if name.rpartition(".")[2] not in ADDRESS}


def settings_of(model: nn.Module) -> dict[str, str]:
    """Return type and settings of each module that is not random itself, by name, as the module prints them."""
    return {name: printed(module) for name, module in model.named_modules() if not isinstance(module, MaskSource)}
