"""Thresholds in Triton, within 1 of the reference since a kernel forms them in float32; packed ones, their cache."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from stochprune import kernels, rng
from stochprune.address import Mask
from stochprune.kernels import masked_linear, masked_linear_backward, threshold_from_logits, thresholds
from stochprune.kernels.routes import OVERRIDE
from stochprune.kernels.thresholds import packed_thresholds


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_within_one_of_the_reference(dtype: torch.dtype, device: torch.device) -> None:
    logits = torch.cat([torch.linspace(-20, 20, 20011), torch.tensor([0.0, float("inf"), -float("inf")])]).to(dtype)
    ours = threshold_from_logits(logits.to(device)).cpu()
    assert ours.dtype == torch.uint16
    difference = ours.int() - rng.threshold_from_logits(logits).int()
    assert difference.abs().max() <= 1
    assert (difference != 0).float().mean() < 1e-2
    assert ours[-3:].tolist() == [16384, 32767, 1]


@pytest.mark.parametrize("shape", [(0,), (), (3, 5, 7)])
def test_keeps_the_shape(shape: tuple[int, ...], device: torch.device) -> None:
    out = threshold_from_logits(torch.zeros(shape, device=device))
    assert out.shape == shape and bool((out.int() == 16384).all())


def test_transposed_logits(device: torch.device) -> None:
    logits = torch.linspace(-8, 8, 77, device=device).reshape(7, 11)
    assert torch.equal(threshold_from_logits(logits.mT).int(), threshold_from_logits(logits).mT.int())


@pytest.mark.gpu
def test_nan_gives_one(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("numpy's maximum, which the interpreter uses, propagates NaN")
    assert threshold_from_logits(torch.tensor([float("nan")], device=device)).item() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows, cols", [(1, 1), (3, 64), (70, 333), (0, 5)])
@pytest.mark.parametrize("transposed", [False, True])
def test_packed(rows: int, cols: int, dtype: torch.dtype, transposed: bool, device: torch.device) -> None:
    """The half word of column k is 0x7FFF + T."""
    logits = (9 * torch.randn(rows, cols, generator=torch.Generator().manual_seed(6))).to(device, dtype)
    packed = packed_thresholds(logits.mT.contiguous().mT if transposed else logits)
    assert packed.shape == (rows, 32 * ((cols + 63) // 64)) and packed.dtype == torch.int32
    halves = packed.view(torch.int16)[:, :cols].int() & 0xFFFF
    assert torch.equal(halves - 0x7FFF, threshold_from_logits(logits).int())


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[thresholds.PackedCache]:
    monkeypatch.setenv(OVERRIDE, "thresholds")
    monkeypatch.setattr(kernels.cache, "enabled", True)
    yield kernels.cache
    kernels.cache.clear()


def test_the_cache_forms_once_for_each_version(cache: thresholds.PackedCache, device: torch.device) -> None:
    at = Mask(*(torch.tensor([n], device=device) for n in (3, 4)), 7)
    logits, w, x = (torch.full(shape, 9.0, device=device) for shape in ((30, 64), (30, 64), (1, 1, 64)))
    y = masked_linear(x, w, logits, None, mask=at)
    first = cache.find(logits)
    assert first is not None and cache.nbytes == 30 * 64 * 2
    masked_linear_backward(y, x, w, logits, mask=at, needs=(True, False, True))
    assert cache.get(logits) is first
    logits.sub_(18)  # as an optimiser's step would
    assert cache.find(logits) is None
    assert masked_linear(x, w, logits, None, mask=at).abs().max() < 0.05 * y.max()
    assert cache.find(logits) is not first
    del logits
    assert cache.nbytes == 0
    with torch.inference_mode():
        timeless = torch.zeros(30, 64, device=device)
        masked_linear(x, w, timeless, None, mask=at)
    assert cache.find(timeless) is None


def test_a_graph_reads_only_what_an_optimiser_maintains(
    cache: thresholds.PackedCache, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    logits = torch.zeros(3, 64, device=device)
    formed = cache.get(logits)
    monkeypatch.setattr(thresholds, "capturing", lambda device: True)
    assert cache.find(logits) is None and cache.get(logits) is not formed
    cache.maintain(logits, formed)
    assert cache.get(logits) is formed
    logits.add_(1)  # not by the optimiser: formed anew in the graph, and not kept
    assert cache.find(logits) is None and cache.get(logits) is not cache.get(logits)
    monkeypatch.setattr(thresholds, "capturing", lambda device: False)
    again = cache.get(logits)  # kept, but no longer maintained
    assert cache.find(logits) is again
    monkeypatch.setattr(thresholds, "capturing", lambda device: True)
    assert cache.find(logits) is None
