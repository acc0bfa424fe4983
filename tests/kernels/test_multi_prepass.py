"""Many layers in one launch: each gets what launches of its own give it, its mask and its gradients."""

from __future__ import annotations

import weakref

import pytest
import torch

from stochprune.kernels import layers
from stochprune.kernels.layers import layers_of
from stochprune.kernels.multi_prepass import masked_weights
from stochprune.kernels.multi_weight_grad import weight_grads
from stochprune.kernels.prepass import mask_weight
from stochprune.kernels.weight_grad import weight_grad
from stochprune.products import Mask

SHAPES = [[(33, 130), (5, 3, 2, 2), (64, 256)], [(32, 64), (64, 128)], [(7, 5)]]
ESTIMATORS = ["straight_through", "concrete"]


def tensors(shapes: list[tuple[int, ...]], device: torch.device, kinds: int = 2) -> list[list[torch.Tensor]]:
    g = torch.Generator().manual_seed(3)
    return [[torch.randn(shape, generator=g).to(device) for shape in shapes] for _ in range(kinds)]


def numbers(count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Seeds, draws and streams, different for each layer."""
    at = torch.arange(count, device=device)
    return 9 + at, 4 + 3 * at, [11 * i + 2 for i in range(count)]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_masked_weights_equal_single_launches(
    shapes: list[tuple[int, ...]], estimator: str, device: torch.device
) -> None:
    weights, logits = tensors(shapes, device)
    seeds, draws, streams = numbers(len(shapes), device)
    for _ in range(2):
        together = masked_weights(weights, logits, seeds, draws, streams, estimator, 0.5, torch.float16)
        for i, (w, logit, stream, out) in enumerate(zip(weights, logits, streams, together, strict=True)):
            mask = Mask(seeds[i : i + 1], draws[i : i + 1], stream, estimator, 0.5)
            one = mask_weight(w.flatten(1), logit.flatten(1), mask, torch.float16)
            assert out.shape == w.shape and torch.equal(out.flatten(1), one[0])
        draws += 1


@pytest.mark.parametrize(
    "shapes, estimator, needs",
    [
        (SHAPES[0], "straight_through", (True, True)),
        (SHAPES[0], "concrete", (True, False)),
        (SHAPES[1], "concrete", (True, True)),
        (SHAPES[2], "straight_through", (False, True)),
    ],
    ids=str,
)
def test_gradients_equal_single_launches(
    shapes: list[tuple[int, ...]], estimator: str, needs: tuple[bool, bool], device: torch.device
) -> None:
    weights, logits, grads = tensors(shapes, device, 3)
    seeds, draws, streams = numbers(len(shapes), device)
    grads[0] = grads[0].mT.contiguous().mT  # of another memory format
    together = weight_grads(grads, weights, logits, seeds, draws, streams, estimator, 0.5, *needs)
    assert tuple(part is not None for part in together) == needs
    for i, (g, w, logit, stream) in enumerate(zip(grads, weights, logits, streams, strict=True)):
        mask = Mask(seeds[i : i + 1], draws[i : i + 1], stream, estimator, 0.5)
        alone = [torch.empty_like(w.flatten(1)) if need else None for need in needs]
        weight_grad(g.flatten(1).contiguous(), w.flatten(1), logit.flatten(1), mask, *alone)
        for part, one in zip(together, alone, strict=True):
            assert part is None or (part[i].shape == w.shape and torch.equal(part[i].flatten(1), one))


def test_the_table_is_made_once_and_follows_a_parameter_that_moves(device: torch.device) -> None:
    weights, logits = tensors([(8, 64)], device)
    options = (*(t[:1] for t in numbers(1, device)), "expected", 1.0, torch.float32)
    before = masked_weights(weights, logits, *options)[0].clone()
    assert layers_of(weights, logits, [2]).table is layers_of(weights, logits, [2]).table
    weights[0].data = 2 * weights[0].data
    torch.testing.assert_close(masked_weights(weights, logits, *options)[0], 2 * before)


def test_bad_input(device: torch.device) -> None:
    weights, logits = tensors([(8, 64), (4, 4)], device)
    with pytest.raises(ValueError, match="2 weights, 2 logits and 1 streams"):
        layers_of(weights, logits, [1])
    with pytest.raises(ValueError, match=r"weights .*contiguous"):
        layers_of([weights[0].mT, weights[1]], logits, [1, 2])
    with pytest.raises(ValueError, match=r"logits .*contiguous"):
        layers_of(weights, [logits[0], logits[1].half()], [1, 2])


def test_a_captured_graph_holds_its_numbers_itself(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """No address comes from host memory, and the table stays when newer ones push it out of the cache."""
    weights, logits, grads = tensors(SHAPES[0], device, 3)
    layers_of(weights, logits, [1, 2, 3])
    monkeypatch.setattr(layers, "_captured", [])
    monkeypatch.setattr(layers, "capturing", lambda device: True)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "tensor", lambda *args, **options: pytest.fail("a copy from the host"))
        table = weakref.ref(layers_of(weights, logits, [1, 2, 3]).table)
        assert layers.addresses_of(grads).tolist() == [g.data_ptr() for g in grads]
    monkeypatch.setattr(layers, "capturing", lambda device: False)
    for stream in range(20):
        layers_of(weights, logits, [stream, 2, 3])
    assert table() is not None
    assert layers.addresses_of(grads).tolist() == [g.data_ptr() for g in grads]
