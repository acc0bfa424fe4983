"""Digests of networks: of every tensor that a network drawn from one depends on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

ADDRESS = ("mask_seed", "mask_draw")
"""Buffers that choose which network is sampled next; the distribution does not depend on them."""
_PRIOR = "prior_logits"
"""A masked layer's buffer for its divergence, on which no output depends."""


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """By name the tensors that a model's outputs may depend on: its state, and the buffers that it does not save."""
    buffers = dict(model.named_buffers(remove_duplicate=False))
    return {n: b for n, b in buffers.items() if n.rpartition(".")[2] != _PRIOR} | model.state_dict(keep_vars=True)


def tensor_digests(model: nn.Module) -> dict[str, str]:
    """By name: the digest of dtype, shape and bytes of each tensor; without the addresses of draws."""
    found = {}
    for name, value in sorted(tensors_of(model).items()):
        if name.rpartition(".")[2] not in ADDRESS:
            tensor = value.detach().cpu().contiguous()
            content = hashlib.blake2s(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            content.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
            found[name] = content.hexdigest()
    return found


def digest_of(content: Any) -> str:
    """Digest of anything that JSON can write."""
    return hashlib.blake2s(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
