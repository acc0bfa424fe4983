"""A small vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stochprune.models.initialise import builder, initialised, normal_
from stochprune.models.transformer import Block


class ViT(nn.Module):
    """Patch embedding, learnt position embedding, transformer blocks, the mean over patches, and a linear layer."""

    def __init__(
        self, in_channels: int, size: tuple[int, int], num_classes: int, patch: int, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        if size[0] % patch or size[1] % patch:
            raise ValueError(f"images of {size[0]} x {size[1]} do not divide into patches of {patch} x {patch}")
        self.patch = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.position = nn.Parameter(torch.empty((size[0] // patch) * (size[1] // patch), width))
        self.blocks = nn.Sequential(*(Block(width, heads, causal=False) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).mT + self.position  # [B, patches, width]
        return self.fc(self.norm(self.blocks(tokens)).mean(1))


@builder
def vit(
    in_channels: int = 3,
    size: tuple[int, int] = (32, 32),
    num_classes: int = 10,
    *,
    patch: int = 4,
    width: int = 192,
    depth: int = 6,
    heads: int = 3,
    seed: int,
) -> ViT:
    """A small vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) with mean pooling, no class token.

    2.7 million parameters with the default sizes. Initial weights and positions are sampled from N(0, 0.02^2).

    Args:
        in_channels, size: of the images [B, in_channels, H, W], size = (H, W) in multiples of ``patch``.
        num_classes: number of outputs.
        patch: side of a patch in pixels.
        width, depth, heads: features of a token, number of blocks, attention heads of a block.
        seed: 0 .. 2^64 - 1.

    Raises:
        ValueError: patches that do not tile the image, or heads that do not divide the width.
    """
    return initialised(lambda: ViT(in_channels, size, num_classes, patch, width, depth, heads), seed, normal_)
