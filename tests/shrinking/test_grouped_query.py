"""Grouped-query attention: heads that share keys and values go together, or stay, and the report says why."""

from __future__ import annotations

import pytest
import torch

import stochprune as sp
from stochprune.shrinking.report import Kept
from tests.shrinking.blocks import zero

pytest.importorskip("transformers")
from tests.integrations.tiny import dense

WIDTH = 8  # of a head


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_groups_of_heads_in_llama(implementation: str) -> None:
    """The second of two groups goes in the first layer; in the second layer one head alone stays."""
    model = dense(num_attention_heads=4, num_key_value_heads=2, attn_implementation=implementation).eval()
    first, second = (layer.self_attn for layer in model.model.layers)
    zero(first.o_proj, *range(2 * WIDTH, 4 * WIDTH), columns=True)
    zero(second.o_proj, *range(WIDTH), columns=True)
    ids = torch.randint(61, (2, 9))
    smaller = sp.shrink(model, {"input_ids": ids, "use_cache": False})
    report = smaller.shrink_report
    key = (16, 32), (8, 32)
    shapes = {"q": ((32, 32), (16, 32)), "k": key, "v": key, "o": ((32, 32), (32, 16))}
    assert report.changed == {f"model.layers.0.self_attn.{name}_proj.weight": each for name, each in shapes.items()}
    together = "goes together with units that are in use"
    assert report.kept == (Kept("model.layers.1.self_attn.q_proj", WIDTH, together),)
    with torch.no_grad():
        other = (ids[:, :7] + 3) % 61
        torch.testing.assert_close(smaller(other).logits, model(other).logits, rtol=1e-5, atol=1e-6)
