"""A shard of a matrix, addressed by its offsets, has that part of the whole's masks, values and gradients."""

from __future__ import annotations

import pytest
import torch

from stochprune import reference, rng
from stochprune.address import Masks
from tests.backends.cases import ALL, BOTH, ESTIMATORS, TOLERANCE, error, mask, moved

WHOLE = (40, 400)  # N, K of the whole
# The first row and column of a shard: at the start, at whole groups of 64 columns, within one, at odd numbers.
SHARDS = [(0, 0), (8, 64), (3, 128), (7, 16), (33, 201)]
SIZE = (7, 130)  # of a shard, and one of whole tiles
FAR = [(2**32 - 41, 2**34 - 512), (2**32 - 41, 2**34 - 401)]


@pytest.fixture(params=SHARDS, ids=str)
def shard(request):
    row, col = request.param
    return slice(row, row + SIZE[0]), slice(col, col + SIZE[1])


def at(part, draws, estimator, first=(0, 0)):
    options = {"row": first[0] + part[0].start, "col": first[1] + part[1].start}
    return mask(2**63 + 5, draws, 9, estimator, 0.7, **options)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_masked_weights(backend, device, estimator, shard, generator):
    w, logits = torch.randn(2, *WHOLE, generator=generator)
    whole = reference.masked_weight(w, logits, mask=mask(2**63 + 5, [3, 4], 9, estimator, 0.7), dtype=w.dtype)
    here = moved(at(shard, [3, 4], estimator), device)
    inputs = w[shard].to(device), logits[shard].to(device)
    assert error(backend.masked_weight(*inputs, mask=here, dtype=w.dtype), whole[(slice(None), *shard)]) < 2e-6
    rows = torch.tensor([5, 0, 0], device=device)
    some = backend.masked_weight(*inputs, mask=here, dtype=w.dtype, rows=rows)
    assert error(some, whole[(slice(None), *shard)][:, rows.cpu()]) < 2e-6
    grad = torch.randn(2, *SIZE, generator=generator)
    expected = reference.weight_grad(grad, w[shard], logits[shard], mask=at(shard, [3, 4], estimator), needs=BOTH)
    memo = []
    backend.masked_weight(*inputs, mask=here, dtype=w.dtype, memo=memo)
    for left in (None, memo):
        actual = backend.weight_grad(grad.clone().to(device), *inputs, mask=here, needs=BOTH, memo=left)
        assert all(error(a, e) < 2e-6 for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("first", FAR, ids=str)
def test_masked_weights_at_the_end_of_the_range(backend, device, first, shard, generator):
    """Hard masks; an offset that loses its high bits shows."""
    here = at(shard, 2**32 - 1, "straight_through", first)
    w, logits = torch.ones(SIZE), torch.zeros(SIZE)
    keep = reference.keep_mask(rng.threshold_from_logits(logits), mask=here)
    masked = backend.masked_weight(w.to(device), logits.to(device), mask=moved(here, device), dtype=w.dtype)
    assert torch.equal(masked[0].cpu(), keep.float())


@pytest.mark.parametrize("first", [(0, 0), FAR[0]], ids=str)
@pytest.mark.parametrize("estimator", ["straight_through", "hard_concrete"])
@pytest.mark.parametrize("draws", [[3], [3, 4]], ids=len)
def test_products(backend, device, estimator, draws, first, shard, generator):
    here = at(shard, draws, estimator, first)
    w, logits = torch.randn(2, *SIZE, generator=generator)
    x = torch.randn(len(draws), 6, SIZE[1], generator=generator)
    grad = torch.randn(len(draws), 6, SIZE[0], generator=generator)
    y = reference.masked_linear(x, w, logits, None, mask=here)
    grads = reference.masked_linear_backward(grad, x, w, logits, mask=here, needs=ALL)
    there = moved(here, device)
    inputs = [t.to(device) for t in (x, w, logits)]
    assert error(backend.masked_linear(*inputs, None, mask=there), y) < TOLERANCE[torch.float32]
    actual = backend.masked_linear_backward(grad.to(device), *inputs, mask=there, needs=ALL)
    assert all(error(a, e) < TOLERANCE[torch.float32] for a, e in zip(actual, grads, strict=True))


def test_many_layers_at_once(backend, device, generator):
    shapes = [(7, 130), (4, 3, 3, 3), (5, 64)]
    weights = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    logits = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    grads = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    numbers = torch.tensor([11, 12, 13], device=device), torch.tensor([1, 0, 2**32 - 1], device=device)
    masks = Masks(*numbers, (5, 6, 7), "straight_through", 1.0, (0, 9, 2**32 - 5), (64, 5, 2**34 - 65))
    formed = backend.masked_weights(weights, logits, masks=masks, dtype=torch.float32)
    found = backend.multi_layer_grads(grads, weights, logits, masks=masks, needs=BOTH)
    for i, (w, t, g) in enumerate(zip(weights, logits, grads, strict=True)):
        here = moved(masks.one(i), "cpu")
        expected = reference.masked_weight(w.cpu(), t.cpu(), mask=here, dtype=torch.float32)[0]
        assert formed[i].shape == w.shape and error(formed[i], expected) < 2e-6
        exact = reference.weight_grad(g[None].cpu(), w.cpu(), t.cpu(), mask=here, needs=BOTH)
        assert all(error(part[i], e) < 2e-6 for part, e in zip(found, exact, strict=True))


@pytest.mark.parametrize("first", [(0, 0), FAR[0]], ids=str)
def test_patterns(backend, device, first, generator):
    w, logits, grad = torch.randn(3, *WHOLE, generator=generator)
    for row, col in ((0, 0), (3, 128), (7, 16), (33, 204)):
        part = slice(row, row + 7), slice(col, col + 136)
        here = mask(7, [3, 4], 9, row=first[0] + row, col=first[1] + col)
        all_of_it = mask(7, [3, 4], 9, row=first[0], col=first[1])
        whole = reference.nm_masked_weight(w, logits, (2, 4), mask=all_of_it, dtype=w.dtype)
        inputs = [t[part].to(device) for t in (w, logits)]
        there = moved(here, device)
        masked = backend.nm_masked_weight(*inputs, (2, 4), mask=there, dtype=w.dtype)
        assert torch.equal(masked.cpu(), whole[(slice(None), *part)])
        g = grad[part].expand(2, -1, -1).contiguous()
        expected = reference.nm_weight_grad(g, w[part], logits[part], (2, 4), mask=here, needs=BOTH)
        actual = backend.nm_weight_grad(g.to(device), *inputs, (2, 4), mask=there, needs=BOTH)
        assert all(error(a, e) < 6e-6 for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("first", [(0, 0), *FAR], ids=str)
def test_gaussian_weights(backend, device, first, shard, generator):
    here = at(shard, [3, 4], "straight_through", first)
    mu, rho = torch.randn(2, *SIZE, generator=generator)
    grad = torch.randn(2, *SIZE, generator=generator)
    there = moved(here, device)
    inputs = mu.to(device), rho.to(device)
    expected = reference.gaussian_weight(mu, rho, mask=here, dtype=mu.dtype)
    assert error(backend.gaussian_weight(*inputs, mask=there, dtype=mu.dtype), expected) < 2e-6
    actual = backend.gaussian_grad(grad.to(device), inputs[1], mask=there)
    assert error(actual, reference.gaussian_grad(grad, rho, mask=here)) < 2e-6
