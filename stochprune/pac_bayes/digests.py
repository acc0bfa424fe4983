"""Digests of networks: of every tensor that a network drawn from one depends on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

ADDRESS = ("mask_seed", "mask_draw")
"""Buffers that say which network is drawn next, and nothing of the distribution."""


def tensor_digests(model: nn.Module) -> dict[str, str]:
    """By name in the ``state_dict``: the digest of dtype, shape and bytes; without the addresses of draws."""
    found = {}
    for name, value in sorted(model.state_dict().items()):
        if name.rpartition(".")[2] not in ADDRESS:
            tensor = value.detach().cpu().contiguous()
            content = hashlib.blake2s(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            content.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
            found[name] = content.hexdigest()
    return found


def digest_of(content: Any) -> str:
    """Digest of anything that JSON can write."""
    return hashlib.blake2s(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
