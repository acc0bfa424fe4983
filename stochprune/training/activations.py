"""The memory of activations, also counted on tensors without values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def saved_bytes(forward: Callable[[], Any], owned: Iterable[Tensor]) -> int:
    """Return the bytes of the distinct storages that ``forward`` saves for backward, without those of ``owned``."""
    before = {t.untyped_storage()._cdata: t.untyped_storage() for t in owned}
    held = dict(before)  # so that no storage is freed, and its place used again, before all are counted

    def pack(tensor: Tensor) -> torch.UntypedStorage:
        storage = tensor.untyped_storage()
        held[storage._cdata] = storage
        # A tensor here would keep the graph: a cycle, for ever, if it is a result of the operation that saves it.
        return storage

    with torch.autograd.graph.saved_tensors_hooks(pack, _no_backward):
        forward()
    return sum(storage.nbytes() for key, storage in held.items() if key not in before)


def _no_backward(packed: object) -> Tensor:
    raise AssertionError("saved_bytes runs no backward pass")


def activation_bytes(
    saved: Callable[[bool], float], output: Any, tokens: int, *, checkpointing: bool, wide: float
) -> float:
    """Return the bytes of activations of a language model of transformers, and of the gradient of its logits.

    Args:
        saved: the bytes that a forward pass saves, without and with recomputed blocks; with them, those outside.
        output: the configuration of the model's text part.
        tokens: of a micro-batch.
        checkpointing: if True, the blocks are recomputed in backward, one at a time.
        wide: bytes of a number between the blocks.
    """
    whole, loss = saved(False), 8.0 * tokens * output.vocab_size  # two gradients of the log-softmax, in float32
    if not checkpointing:
        return whole + loss
    outside, blocks = saved(True), output.num_hidden_layers
    return outside + blocks * tokens * output.hidden_size * wide + (whole - outside) / blocks + loss


def checkpoint_blocks(model: Any) -> None:
    """Let a model of transformers recompute the activations of each block in backward."""
    name = "activation_checkpointing_enable"  # before version 5.20: gradient_checkpointing_enable
    enable = getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")
    enable({"use_reentrant": False})
