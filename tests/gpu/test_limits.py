"""Limits on a GPU: sizes of one, more draws than an axis of a grid holds, dtypes that differ, graphs of many layers."""

from __future__ import annotations

import pytest
import torch

from stochprune import backends, reference, rng
from stochprune.address import Mask, Masks
from stochprune.kernels import (
    gaussian_grad,
    gaussian_weight,
    masked_linear_backward,
    multi_layer_grads,
    threshold_from_logits,
)
from stochprune.kernels.routes import OVERRIDE
from tests.backends.cases import moved

DRAWS = 70_000


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_more_draws_than_an_axis_holds(name: str, device: torch.device) -> None:
    try:
        backend = backends.load(name)
    except RuntimeError as error:
        pytest.skip(str(error))
    logits, at = torch.zeros(2, 40, device=device), Mask(torch.tensor([5]), torch.arange(DRAWS), 3)
    there = moved(at, device)
    masked = backend.masked_weight(torch.ones_like(logits), logits, mask=there, dtype=torch.float32)
    for d in (0, 1, 65_535, 65_536, DRAWS - 1):
        threshold = threshold_from_logits(logits).cpu()
        keep = reference.keep_mask(threshold, mask=at.one(d))
        assert torch.equal(masked[d].cpu() != 0, keep)


@pytest.mark.parametrize("rows, cols", [(1, 1), (1, 70), (70, 1)])
def test_sizes_of_one(rows: int, cols: int, device: torch.device) -> None:
    mu, rho, grad = (torch.randn(rows, cols, generator=torch.Generator().manual_seed(i)) for i in range(3))
    at = Mask(torch.tensor([3]), torch.tensor([4]), 7)
    there = moved(at, device)
    exact = reference.gaussian_weight(mu.double(), rho.double(), mask=at, dtype=torch.float64)
    ours = gaussian_weight(mu.to(device), rho.to(device), mask=there, dtype=torch.float32)
    torch.testing.assert_close(ours.cpu(), exact.float())
    exact = reference.gaussian_grad(grad[None].double(), rho.double(), mask=at)
    ours = gaussian_grad(grad[None].to(device), rho.to(device), mask=there)
    torch.testing.assert_close(ours.cpu(), exact.float())


def test_wide_activations_above_narrow_weights(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OVERRIDE, "prepass")
    g = torch.Generator().manual_seed(1)
    x, grad = torch.randn(1, 40, 64, generator=g), torch.randn(1, 40, 32, generator=g)
    weight, logits = (torch.randn(32, 64, generator=g).bfloat16() for _ in range(2))
    at, needs = Mask(torch.tensor([3]), torch.tensor([4]), 7, "expected"), (True, True, True)
    given = (grad, x, weight, logits)
    exact = reference.masked_linear_backward(*(t.double() for t in given), mask=at, needs=needs)
    found = masked_linear_backward(*(t.to(device) for t in given), mask=moved(at, device), needs=needs)
    for one, other in zip(found, exact, strict=True):
        assert (one.double().cpu() - other).norm() <= 1e-2 * other.norm()


@pytest.mark.parametrize("first", [(0, 0, 0), (0, 64, 17)], ids=str)
def test_a_graph_of_many_layers_reads_its_own_addresses(first: tuple[int, ...], device: torch.device) -> None:
    shapes = [(33, 130), (64, 256), (5, 18)]
    g = torch.Generator().manual_seed(1)
    weights, logits, grads = ([torch.randn(s, generator=g).to(device) for s in shapes] for _ in range(3))
    seeds, draws = torch.arange(3, device=device), torch.arange(3, device=device)
    masks, needs = Masks(seeds, draws, [1, 2, 3], "straight_through", 1.0, first, first), (True, True)
    multi_layer_grads(grads, weights, logits, masks=masks, needs=needs)  # warm
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = multi_layer_grads(grads, weights, logits, masks=masks, needs=needs)
    for step in range(50):  # other steps take pinned memory, and push the table out of its cache
        others = masks._replace(streams=[step, 2, 3])
        multi_layer_grads([g + step for g in grads], weights, logits, masks=others, needs=needs)
    draws += 7
    graph.replay()
    expected = multi_layer_grads(grads, weights, logits, masks=masks, needs=needs)
    assert captured[0] is not None and captured[1] is not None and expected[0] is not None and expected[1] is not None
    assert all(
        torch.equal(a, b) for a, b in zip([*captured[0], *captured[1]], [*expected[0], *expected[1]], strict=True)
    )


def test_a_launch_on_another_device_leaves_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    backend = backends.load("cuda")
    before = torch.cuda.current_device()
    logits = torch.zeros(8, 64, device=f"cuda:{1 - before}")
    backend.threshold_from_logits(logits)
    assert torch.cuda.current_device() == before
    assert torch.equal(backend.threshold_from_logits(logits).cpu().int(), rng.threshold_from_logits(logits.cpu()).int())
