"""Many layers in one launch: each gets what launches of its own give it, its mask and its gradients."""

from __future__ import annotations

import itertools
import weakref

import pytest
import torch

from stochprune.address import Masks
from stochprune.kernels import layers
from stochprune.kernels.layers import layers_of
from stochprune.kernels.mask_backward import mask_backward
from stochprune.kernels.multi_layer_grads import multi_layer_grads
from stochprune.kernels.multi_prepass import masked_weights
from stochprune.kernels.prepass import mask_weight
from stochprune.materialised import Gradients
from stochprune.memory_format import channels_last

SHAPES = [[(33, 130), (5, 3, 2, 2), (64, 256)], [(32, 64), (64, 128)], [(7, 5)]]
ESTIMATORS = ["straight_through", "concrete"]


def tensors(shapes: list[tuple[int, ...]], device: torch.device, kinds: int = 2) -> list[list[torch.Tensor]]:
    g = torch.Generator().manual_seed(3)
    return [[torch.randn(shape, generator=g).to(device) for shape in shapes] for _ in range(kinds)]


def masks_of(count: int, device: torch.device, estimator: str = "straight_through", sharded: bool = False) -> Masks:
    """Seeds, draws, streams and offsets, different for each layer."""
    at = torch.arange(count, device=device)
    rows, cols = (
        ([5 * i + 1 for i in range(count)], [48 * i + 16 for i in range(count)]) if sharded else ([0] * count,) * 2
    )
    return Masks(9 + at, 4 + 3 * at, [11 * i + 2 for i in range(count)], estimator, 0.5, rows, cols)


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("sharded", [False, True])
def test_masked_weights_equal_single_launches(
    shapes: list[tuple[int, ...]], estimator: str, sharded: bool, device: torch.device
) -> None:
    weights, logits = tensors(shapes, device)
    masks = masks_of(len(shapes), device, estimator, sharded)
    for _ in range(2):
        together = masked_weights(weights, logits, masks=masks, dtype=torch.float16)
        for i, (w, logit, out) in enumerate(zip(weights, logits, together, strict=True)):
            one = mask_weight(w.flatten(1), logit.flatten(1), mask=masks.one(i), dtype=torch.float16)
            assert out.shape == w.shape and torch.equal(out.flatten(1), one[0])
        masks.draws.add_(1)


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
@pytest.mark.parametrize("sharded", [False, True])
def test_gradients_equal_single_launches(
    shapes: list[tuple[int, ...]], estimator: str, needs: tuple[bool, bool], sharded: bool, device: torch.device
) -> None:
    weights, logits, grads = tensors(shapes, device, 3)
    grads[0] = grads[0].mT.contiguous().mT  # of another memory format
    masks = masks_of(len(shapes), device, estimator, sharded)
    together = multi_layer_grads(grads, weights, logits, masks=masks, needs=needs)
    assert tuple(part is not None for part in together) == needs
    for i, (g, w, logit) in enumerate(zip(grads, weights, logits, strict=True)):
        flat = [t.flatten(1).contiguous() for t in (g, w, logit)]
        dweight, dlogits = (torch.empty_like(flat[1]) if need else None for need in needs)
        mask_backward(*flat, mask=masks.one(i), to=Gradients(dweight, dlogits), rows=None, kl=None)
        for part, one in zip(together, (dweight, dlogits), strict=True):
            assert part is None or (part[i].shape == w.shape and torch.equal(part[i].flatten(1), one))


@pytest.mark.parametrize("sharded", [False, True])
def test_filters_with_the_channels_last(sharded: bool, device: torch.device) -> None:
    shapes = [(9, 5, 3, 3), (16, 64), (4, 6, 1, 2), (8, 3, 2, 2, 3), (8, 6, 1, 1)]
    given = tensors(shapes, device, 3)
    last = [[t.movedim(1, -1).contiguous().movedim(-1, 1) for t in part] for part in given]
    masks = masks_of(len(shapes), device, "straight_through", sharded)
    expected = masked_weights(*given[:2], masks=masks, dtype=torch.float16)
    for w, got, want in zip(
        last[0], masked_weights(*last[:2], masks=masks, dtype=torch.float16), expected, strict=True
    ):
        assert torch.equal(got, want) and channels_last(got) == channels_last(w)
    weights, logits, grads = given
    expected = multi_layer_grads(grads, weights, logits, masks=masks, needs=(True, True))
    for g in (grads, last[2]):
        together = multi_layer_grads(g, *last[:2], masks=masks, needs=(True, True))
        for got, want in zip(itertools.chain(*together), itertools.chain(*expected), strict=True):
            assert torch.equal(got, want)


def test_the_table_is_made_once_and_follows_a_parameter_that_moves(device: torch.device) -> None:
    weights, logits = tensors([(8, 64)], device)
    masks = masks_of(1, device, "expected")
    before = masked_weights(weights, logits, masks=masks, dtype=torch.float32)[0].clone()
    assert layers_of(weights, logits, masks).table is layers_of(weights, logits, masks).table
    weights[0].data = 2 * weights[0].data
    torch.testing.assert_close(masked_weights(weights, logits, masks=masks, dtype=torch.float32)[0], 2 * before)


def test_bad_input(device: torch.device) -> None:
    weights, logits = tensors([(8, 64), (4, 4)], device)
    with pytest.raises(ValueError, match="2 weights, 2 logits and 1 streams"):
        layers_of(weights, logits, masks_of(1, device))
    with pytest.raises(ValueError, match="weights must be of one dtype"):
        layers_of([weights[0].mT, weights[1]], logits, masks_of(2, device))
    with pytest.raises(ValueError, match="logits must be of one dtype"):
        layers_of(weights, [logits[0], logits[1].half()], masks_of(2, device))
    with pytest.raises(ValueError, match="logits like the weights"):
        layers_of(weights, [logits[0].mT.contiguous().mT, logits[1]], masks_of(2, device))


def test_a_captured_graph_holds_its_numbers_itself(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """No address comes from host memory, and the table stays when newer ones push it out of the cache."""
    weights, logits, grads = tensors(SHAPES[0], device, 3)
    masks = masks_of(3, device)
    layers_of(weights, logits, masks)
    monkeypatch.setattr(layers, "_captured", {})
    monkeypatch.setattr(layers, "capturing", lambda device: True)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "tensor", lambda *args, **options: pytest.fail("a copy from the host"))
        table = weakref.ref(layers_of(weights, logits, masks).table)
        assert layers.addresses_of(grads).tolist() == [g.data_ptr() for g in grads]
    monkeypatch.setattr(layers, "capturing", lambda device: False)
    for stream in range(20):
        layers_of(weights, logits, masks._replace(streams=[stream, 2, 3]))
    assert table() is not None
    assert layers.addresses_of(grads).tolist() == [g.data_ptr() for g in grads]
