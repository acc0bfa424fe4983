"""The autoregressive transformer: causality, tying, and errors."""

from __future__ import annotations

import pytest
import torch

from stochprune.models import gpt


def test_later_tokens_do_not_change_earlier_logits() -> None:
    model = gpt(11, 8, width=12, depth=2, heads=3, seed=0)
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    changed = torch.tensor([[1, 2, 3, 9, 5]])
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_the_head_is_the_embedding() -> None:
    model = gpt(11, 8, width=12, depth=1, heads=3, seed=0)
    assert model.head.weight is model.token.weight
    assert "head.weight" not in dict(model.named_parameters())


def test_sequences_beyond_the_context_are_refused() -> None:
    model = gpt(11, 8, width=12, depth=1, heads=3, seed=0)
    with pytest.raises(ValueError, match=r"9 tokens.*\b8\b"):
        model(torch.zeros(1, 9, dtype=torch.int64))
