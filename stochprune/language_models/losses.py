"""Losses of language models: of the next token, in nats, and of a student that follows its dense teacher."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.data.batch_loss import ForwardLoss
from stochprune.nn.evaluation import evaluation
from stochprune.training.distillation import distillation_loss


def next_token_loss(outputs: Any, y: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats a token.

    Args:
        outputs: of a causal model of transformers: ``logits`` [batch, tokens, vocabulary].
        y: the next tokens, int64 [batch, tokens].
    """
    return F.cross_entropy(outputs.logits.flatten(0, -2).float(), y.flatten())


@checked
@torch.no_grad()
def token_loss(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 16) -> float:
    """Return the mean loss of a model in evaluation mode, in nats a token; each module's mode is restored.

    Args:
        x, y: blocks and their next tokens, int64 [blocks, context].

    Raises:
        ValueError: no blocks, or a loss that is not finite.
    """
    if not len(x):
        raise ValueError("token_loss: x must contain at least one block, got none")
    device, total = next(model.parameters()).device, 0.0
    with evaluation(model):
        for tokens, following in zip(x.split(batch_size), y.split(batch_size), strict=True):
            total += next_token_loss(model(tokens.to(device)), following.to(device)).item() * len(tokens)
    if not math.isfinite(total):
        raise ValueError(f"token_loss: the model's loss is {total / len(x)}: its weights or its outputs are not finite")
    return total / len(x)


@checked
def perplexity(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 16) -> float:
    """Return ``exp`` of the mean loss in nats a token, over blocks that do not see each other; see :func:`token_loss`.

    A block starts without context, so the number depends on the length of the blocks.
    """
    return math.exp(min(token_loss(model, x, y, batch_size), 700.0))


def distilled(teacher: nn.Module, strength: float) -> ForwardLoss:
    """Return the loss of self-distillation, for ``LoopOptions(forward_loss=...)`` and batches (x, y).

    It is ``(1 - strength)`` times the loss of the next token plus ``strength`` times the divergence
    ``KL(teacher || student)`` of the next token's distribution, a mean over tokens (Hinton, Vinyals and Dean 2015,
    "Distilling the knowledge in a neural network", arXiv 1503.02531, at temperature 1). The teacher is the dense model.

    Args:
        teacher: is set to evaluation mode and never trained.
        strength: in (0, 1].

    Raises:
        ValueError: a strength outside its range.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"distilled: strength must lie in (0, 1], got {strength}")
    teacher.eval().requires_grad_(False)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        outputs = model(x)
        with torch.no_grad():
            wanted = teacher(x).logits
        divergence = distillation_loss(outputs.logits, wanted).mean()
        return strength * divergence + (1 - strength) * next_token_loss(outputs, y)

    return loss
