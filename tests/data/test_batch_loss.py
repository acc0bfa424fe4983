"""BatchLoss: how many examples a batch has, and the dtype of its passes."""

from __future__ import annotations

import collections

import pytest
import torch
import torch.nn.functional as F

from stochprune import models, scores
from stochprune.data import BatchLoss
from stochprune.data.batch_loss import count_examples

X, ONE = torch.zeros(3, 5), torch.zeros(1, 5)
BATCHES = {
    "pair": (X, torch.zeros(3)),
    "positions": {"position_ids": ONE, "input_ids": X},
    "positions, without a known name": {"positions": ONE, "x": X},
    "a known name before larger tensors": {
        "patches": torch.zeros(12, 2),
        "pixel_values": X,
        "labels": [{"boxes": ONE}],
    },
    "a tuple with a mapping": ({"position_ids": ONE, "labels": X}, None),
    "mappings in a mapping": {"weight": torch.tensor([1.0]), "text": {"position_ids": ONE, "input_ids": X}},
    "a tuple without numbers first": ("name", torch.tensor(1.0), [X, ONE]),
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_the_examples_of_a_batch(batch):
    assert count_examples(batch) == 3
    if isinstance(batch, dict):
        turned = dict(reversed(batch.items()))
        assert count_examples(turned) == count_examples(collections.UserDict(turned)) == 3


def test_a_batch_without_tensors_or_examples():
    assert [count_examples(batch) for batch in ({"a": 3}, (), torch.tensor(1.0), None)] == [1] * 4
    assert count_examples((X[:0], torch.zeros(0))) == count_examples({"x": X[:0]}) == 0


def test_scores_of_inputs_run_in_the_dtype_of_the_loss_and_sum_in_full_precision():
    x, y = torch.randn(64, 6, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3
    model = models.mlp((6, 8, 3), seed=0)
    full = [scores.by_name(name)(model, F.cross_entropy, [(x, y)]) for name in ("wanda", "sparsegpt")]
    loss = BatchLoss(F.cross_entropy, dtype=torch.bfloat16)
    for name, found in zip(("wanda", "sparsegpt"), full, strict=True):
        score = scores.by_name(name)(model, loss, [(x, y)])
        assert torch.allclose(score["fc1.weight"], found["fc1.weight"], rtol=1e-5)  # its inputs are the batch itself
        assert not torch.equal(score["fc2.weight"], found["fc2.weight"])
    low = models.mlp((6, 8, 3), seed=0).bfloat16()
    assert scores.snip(low, loss, [(x, y)]).keys() == scores.wanda(low, loss, [(x, y)]).keys()
