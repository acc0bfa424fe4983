"""Digests of tensors, of models, and of everything that JSON can write."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import torch
from torch import Tensor, nn

_VARYING = re.compile(r"\bkeep=[^,]*| at 0x[0-9a-f]+")
"""The parts of a printed module that tell of its weights and of the memory, and not of its settings."""


def tensor_digest(*tensors: Tensor) -> str:
    """Return a hexadecimal digest of the dtypes, shapes and bytes of tensors, the same on every device."""
    content = hashlib.blake2s()
    for tensor in tensors:
        _feed(content, "", tensor)
    return content.hexdigest()


def fingerprint(model: nn.Module) -> str:
    """Return a hexadecimal digest of a model's state: names, dtypes, shapes and every byte."""
    content = hashlib.blake2s()
    for name, value in sorted(model.state_dict().items()):
        _feed(content, f"{name} ", value)
    return content.hexdigest()


def printed(module: nn.Module) -> str:
    """Return the type of a module and its own settings, as it prints them."""
    return f"{type(module).__qualname__}({module.extra_repr()})"


def structure(model: nn.Module) -> str:
    """Return a hexadecimal digest of the types of a model's modules and of the settings that they print, by name."""
    return json_digest([[name, _VARYING.sub("", printed(each))] for name, each in model.named_modules()])


def json_digest(content: Any) -> str:
    """Return a hexadecimal digest of anything that JSON can write; the order of keys does not matter."""
    return hashlib.blake2s(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _feed(content: hashlib.blake2s, label: str, tensor: Tensor) -> None:
    content.update(f"{label}{tensor.dtype} {tuple(tensor.shape)}".encode())
    content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
