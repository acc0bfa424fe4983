"""Checks of the labels for torch's cross-entropy, whose own messages do not name the argument or the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stochprune.arguments import shown


def check_labels(loss_fn: object, outputs: object, y: Tensor) -> None:
    """Raise ``ValueError`` if ``loss_fn`` is cross-entropy and the labels do not fit the outputs [B, classes, ...].

    Labels are int64 [B, ...] in 0 .. classes - 1, or -100, which cross-entropy ignores; or probabilities of the
    outputs' shape. Their range is checked on the CPU only, because a check on a GPU would wait for the GPU.
    """
    if loss_fn is not F.cross_entropy:
        return
    if not isinstance(outputs, Tensor):
        raise ValueError(f"the model's outputs must be a tensor for cross_entropy, got {shown(outputs)}; give loss_fn")
    if y.is_floating_point() and y.shape == outputs.shape:
        return
    expected = outputs.shape[:1] + outputs.shape[2:] if outputs.dim() > 1 else torch.Size()
    if y.dtype not in (torch.int64, torch.uint8) or y.shape != expected:
        raise ValueError(
            f"labels must be int64 {list(expected)} for outputs {list(outputs.shape)} and cross_entropy, got "
            f"{str(y.dtype).removeprefix('torch.')} {list(y.shape)}; for regression give loss_fn, such as F.mse_loss"
        )
    classes = outputs.shape[min(1, outputs.dim() - 1)] if outputs.dim() else 0
    if y.device.type == "cpu" and y.numel() and not bool((((y >= 0) & (y < classes)) | (y == -100)).all()):
        raise ValueError(f"labels must lie in 0 .. {classes - 1}, got {int(y.min())} .. {int(y.max())}")


def checked_loss(loss: object) -> Tensor:
    """Return the loss if it is one number; else raise ``ValueError``."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(f"loss_fn must return a tensor of one number, got {shown(loss)}")
    return loss


def trained_loss(loss: object) -> Tensor:
    """Return the loss if it is one number with a gradient; else raise ``ValueError``."""
    if not checked_loss(loss).requires_grad:
        raise ValueError(
            "loss_fn returned a loss without a gradient: loss_fn or the model detaches it (detach, item, no_grad, "
            "argmax), or no parameter that it depends on requires gradients"
        )
    return checked_loss(loss)
