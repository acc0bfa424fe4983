"""The vision transformer: attention against a plain derivation, patches, and errors."""

from __future__ import annotations

import pytest
import torch

from stochprune.models import vit
from stochprune.models.transformer import Attention


@pytest.mark.parametrize("causal", [False, True])
def test_attention_by_its_definition(causal: bool, generator: torch.Generator) -> None:
    with torch.device("meta"):
        attention = Attention(6, 2, causal)
    attention.to_empty(device="cpu")
    for p in attention.parameters():
        torch.nn.init.normal_(p, generator=generator)
    x = torch.randn(5, 6, generator=generator)
    q, k, v = attention.qkv(x).split(6, dim=1)
    heads = []
    for part in (slice(0, 3), slice(3, 6)):
        scores = q[:, part] @ k[:, part].T / 3**0.5
        if causal:
            scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
        heads.append(scores.softmax(1) @ v[:, part])
    expected = attention.proj(torch.cat(heads, 1))
    torch.testing.assert_close(attention(x[None])[0], expected)


def test_patches_are_tokens_with_positions() -> None:
    model = vit(1, (8, 12), 3, patch=4, width=6, depth=1, heads=2, seed=0)
    assert model.position.shape == (6, 6)
    assert model(torch.zeros(2, 1, 8, 12)).shape == (2, 3)
    before = model(torch.zeros(1, 1, 8, 12))
    model.position.data += torch.arange(6.0)
    assert not torch.equal(before, model(torch.zeros(1, 1, 8, 12)))


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"28 x 30.*4 x 4"):
        vit(1, (28, 30), seed=0)
    with pytest.raises(ValueError, match=r"width 10 and 3 heads"):
        vit(width=10, seed=0)
