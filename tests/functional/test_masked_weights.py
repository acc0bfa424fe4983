"""masked_weights: each layer's masked weight and gradients are those of the layer alone, on every backend."""

from __future__ import annotations

import pytest
import torch

from stochprune import reference
from stochprune.address import Mask
from stochprune.functional import masked_weights

SHAPES = [(6, 70), (5, 3, 3, 3), (4, 2, 5)]
STREAMS = [7, 8, 9]
AT = {"seeds": torch.tensor([3, -1, 3]), "draws": torch.tensor([0, 5, 2**32 - 1]), "streams": STREAMS}


def tensors(generator, dtype=torch.float32):
    return [[torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in SHAPES] for _ in range(2)]


@pytest.fixture(params=["native", "triton", "reference"])
def backend(request, monkeypatch):
    if request.param == "native":
        pytest.importorskip("stochprune._C")
    monkeypatch.setenv("STOCHPRUNE_BACKEND", request.param)
    return request.param


@pytest.mark.parametrize("estimator", ["straight_through", "hard_concrete"])
def test_every_layer_as_by_itself(backend, estimator, generator):
    weights, logits = tensors(generator)
    grads = [torch.randn(s, generator=generator) for s in SHAPES]
    together = masked_weights(weights, logits, **AT, estimator=estimator, temperature=0.7)
    found = torch.autograd.grad(together, [*weights, *logits], grads)
    for i, (w, logit, grad) in enumerate(zip(weights, logits, grads, strict=True)):
        at = Mask(AT["seeds"][i : i + 1], AT["draws"][i : i + 1], STREAMS[i], estimator, 0.7)
        torch.testing.assert_close(together[i], reference.masked_weight(w, logit, mask=at, dtype=torch.float32)[0])
        expected = reference.weight_grad(grad[None], w, logit, mask=at, needs=(True, True))
        for got, want in zip((found[i], found[i + 3]), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_frozen_tensors_and_other_dtypes(backend, generator):
    weights, logits = tensors(generator)
    frozen = [w.detach() for w in weights]
    together = masked_weights(frozen, logits, **AT, dtype=torch.float16 if backend == "triton" else torch.bfloat16)
    assert {t.dtype for t in together} == {torch.float16 if backend == "triton" else torch.bfloat16}
    sum(t.float().sum() for t in together).backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in logits)


def test_double_backward_raises(generator):
    weights, logits = tensors(generator)
    (g,) = torch.autograd.grad(
        sum(t.square().sum() for t in masked_weights(weights, logits, **AT)), weights[0], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"streams": [1, 2]}, ValueError, "got 3, 3, 2, 3, 3"),
        ({"draws": torch.tensor([1])}, ValueError, "got 3, 3, 3, 3, 1"),
        (
            {"logits": [torch.ones(2, 3)] * 3},
            ValueError,
            r"weights\[0\] \(6, 70\).* logits\[0\] \(2, 3\)",
        ),
        ({"weights": [torch.ones(s, dtype=torch.int64) for s in SHAPES]}, TypeError, r"weights\[0\].*int64"),
        ({"logits": [torch.ones(s, device="meta") for s in SHAPES]}, ValueError, r"logits\[0\] on meta"),
        ({"streams": [1, 2, 2**31]}, ValueError, "stream.*got 2147483648"),
        ({"estimator": "arm"}, ValueError, "masked_weights: .*estimator.*'arm'"),
    ],
)
def test_bad_input(change, error, message, generator):
    weights, logits = ([t.detach() for t in part] for part in tensors(generator))
    with pytest.raises(error, match=message):
        masked_weights(**{"weights": weights, "logits": logits, **AT, **change})
