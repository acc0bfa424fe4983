"""A small autoregressive transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stochprune.models.initialise import builder, initialised, normal_
from stochprune.models.transformer import Block


class GPT(nn.Module):
    """Token and position embeddings, causal transformer blocks, and an output layer.

    The forward pass returns logits [B, L, vocabulary] of the next token for int64 tokens [B, L], L at most ``context``.
    """

    def __init__(self, vocabulary: int, context: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        if length > self.position.num_embeddings:
            raise ValueError(f"{length} tokens exceed the context of {self.position.num_embeddings}")
        x = self.token(tokens) + self.position(torch.arange(length, device=tokens.device))
        return self.head(self.norm(self.blocks(x)))


@builder
def gpt(vocabulary: int, context: int = 128, *, width: int = 192, depth: int = 6, heads: int = 3, seed: int) -> GPT:
    """A small GPT like GPT-2 (Radford et al. 2019), whose output layer is tied to the token embedding.

    Initial weights and embeddings are sampled from N(0, 0.02^2).

    Args:
        vocabulary: number of tokens.
        context: longest sequence.
        width, depth, heads: features of a token, number of blocks, attention heads of a block.
        seed: 0 .. 2^64 - 1.

    Raises:
        ValueError: heads that do not divide the width; in forward, a sequence longer than ``context``.
    """
    model = initialised(lambda: GPT(vocabulary, context, width, depth, heads), seed, normal_)
    model.head.weight = model.token.weight
    return model
