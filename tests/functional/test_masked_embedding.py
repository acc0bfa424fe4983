"""masked_embedding against torch's embedding of the whole masked table, its gradients, and its errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stochprune import native
from stochprune.functional import masked_embedding
from tests.backends.cases import ESTIMATORS
from tests.functional.definitions import AT, mask_at, recorded, saved_bytes

OPS = torch.ops.stochprune
INDICES = torch.tensor([[3, 0, 39], [3, 17, 3]])


def table(generator, dtype=torch.float64):
    return [torch.randn(40, 70, generator=generator, dtype=dtype).requires_grad_() for _ in range(2)]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_torchs_embedding_of_the_masked_table(estimator, dtype, tolerance, generator):
    inputs = [t.detach().to(dtype).requires_grad_() for t in table(generator)]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    y = masked_embedding(INDICES, *inputs, **AT, estimator=estimator, temperature=0.6, padding_idx=-23)
    weight, logits = exact
    expected = F.embedding(INDICES, mask_at(logits, estimator, 0.6) * weight, padding_idx=17)
    grad = torch.randn(2, 3, 70, generator=generator).to(dtype)
    got = (y, *torch.autograd.grad(y, inputs, grad))
    for g, w in zip(got, (expected, *torch.autograd.grad(expected, exact, grad.double())), strict=True):
        assert g.dtype == dtype and (g.double() - w).norm() / w.norm() < tolerance


def test_only_the_rows_looked_up_are_masked(generator, monkeypatch):
    weight, logits = table(generator, torch.float32)
    rows = recorded(monkeypatch, native, "masked_weight", "rows")
    masked_embedding(INDICES, weight, logits, **AT)
    assert [row.tolist() for row in rows] == [INDICES.flatten().tolist()]


def test_the_cache_of_thresholds_serves_rows(generator, monkeypatch):
    weight, logits = table(generator, torch.float32)
    expected = masked_embedding(INDICES, weight, logits, **AT)
    monkeypatch.setattr(native.cache, "enabled", True)
    assert torch.equal(masked_embedding(INDICES, weight, logits, **AT), expected)
    native.cache.clear()


def test_many_masks(generator):
    inputs = table(generator)
    y = masked_embedding(INDICES, *inputs, **AT, samples=3)
    assert y.shape == (3, 2, 3, 70)
    apart = torch.stack([masked_embedding(INDICES, *inputs, **{**AT, "draw": 11 + s}) for s in range(3)])
    assert torch.equal(y, apart)
    for g, w in zip(
        torch.autograd.grad(y.sin().sum(), inputs), torch.autograd.grad(apart.sin().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(g, w)
    y = masked_embedding(INDICES, *inputs, **{**AT, "draw": torch.tensor([4, 9])})
    assert torch.equal(y[1], masked_embedding(INDICES[1], *inputs, **{**AT, "draw": 9}))


def test_one_index_and_none(generator):
    inputs = table(generator)
    assert torch.equal(
        masked_embedding(torch.tensor(3, dtype=torch.int32), *inputs, **AT),
        masked_embedding(INDICES, *inputs, **AT)[0, 0],
    )
    y = masked_embedding(INDICES[:0], *inputs, **AT)
    assert y.shape == (0, 3, 70)
    assert not any(g.any() for g in torch.autograd.grad(y.sum(), inputs))


def test_operators_pass_opcheck(generator):
    weight, logits = table(generator, torch.float32)
    options = (torch.tensor([1]), torch.tensor([2, 7]), 3, "straight_through", 1.0, 0, 0, 17)
    torch.library.opcheck(OPS.masked_embedding.default, (INDICES, weight, logits, *options))
    grad = torch.ones(2, 3, 70)
    torch.library.opcheck(
        OPS.masked_embedding_backward.default,
        (grad, INDICES, weight.detach(), logits.detach(), *options, True, False),
    )


def test_compiled_gives_the_eager_bits(generator):
    inputs = table(generator, torch.float32)
    step = lambda draw: masked_embedding(INDICES, *inputs, **{**AT, "draw": draw})  # noqa: E731
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for number in range(2):
        assert torch.equal(step(torch.tensor([number])), compiled(torch.tensor([number])))


def test_nothing_but_the_inputs_and_two_integers_is_saved(generator):
    inputs = table(generator, torch.float32)
    saved = saved_bytes(lambda: masked_embedding(INDICES, *inputs, **AT), (*inputs, INDICES))
    assert sum(saved) == 16  # the seed and the draw


def test_vmap_over_the_indices(generator):
    inputs = table(generator)
    got = torch.vmap(lambda t: masked_embedding(t, *inputs, **AT))(INDICES)
    assert torch.equal(got, masked_embedding(INDICES, *inputs, **AT))
    weights = torch.stack([inputs[0], 2 * inputs[0]])
    got = torch.vmap(lambda w: masked_embedding(INDICES, w, inputs[1], **AT))(weights)
    assert torch.equal(got, torch.stack([masked_embedding(INDICES, w, inputs[1], **AT) for w in weights]))


def test_double_backward_raises(generator):
    weight, logits = table(generator)
    (g,) = torch.autograd.grad(
        masked_embedding(INDICES, weight, logits, **AT).square().sum(), weight, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once"):
        g.sum().backward()


ONES = {"indices": INDICES, "weight": torch.ones(40, 7), "logits": torch.ones(40, 7)}


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"indices": INDICES.float()}, TypeError, "indices.*got torch.float32"),
        ({"indices": INDICES + 1}, IndexError, r"indices.*got 40"),
        ({"indices": INDICES - 1}, IndexError, r"indices.*got -1"),
        ({"weight": torch.ones(40)}, ValueError, r"weight.*got shape \(40,\)"),
        ({"logits": torch.ones(7, 40)}, ValueError, r"logits \(7, 40\) and weight \(40, 7\)"),
        ({"logits": torch.full((40, 7), float("nan"))}, ValueError, "logits .*NaN"),
        ({"weight": torch.ones(40, 7, dtype=torch.int64)}, TypeError, "weight.*int64"),
        ({"padding_idx": 40}, ValueError, r"padding_idx.*got 40"),
        ({"draw": torch.arange(4)}, ValueError, r"indices \(2, 3\).*\b4\b"),
        ({"estimator": "reinforce"}, ValueError, "masked_embedding: .*estimator.*'reinforce'"),
        ({"seed": -1}, ValueError, "seed.*got -1"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        masked_embedding(**{**ONES, **AT, **change})
