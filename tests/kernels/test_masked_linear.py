"""masked_linear in Triton: values and gradients against the reference in float64."""

from __future__ import annotations

import importlib
import itertools

import pytest
import torch
from torch import Tensor

from stochprune import reference
from stochprune.address import KLTerm, Mask
from stochprune.kernels import masked_linear, masked_linear_backward, split_sum
from stochprune.kernels.routes import OVERRIDE, ROUTES
from tests.backends.cases import ESTIMATORS
from tests.kernels.cases import case

kernel_module = importlib.import_module("stochprune.kernels.masked_linear")  # the package has a function of this name
SHAPES = [(1, 5, 37, 13), (2, 7, 70, 33), (1, 1, 64, 128), (2, 70, 130, 66), (1, 3, 600, 5), (1, 2, 5, 600)]
EMPTY = [(0, 3, 4, 5), (2, 0, 4, 5), (1, 0, 4, 5), (2, 3, 0, 4), (1, 3, 0, 4), (1, 3, 4, 0)]
# dtypes of x, weight and logits
DTYPES = [
    (torch.float32, torch.float32, torch.float32),
    (torch.float16, torch.float16, torch.float16),
    (torch.float16, torch.float32, torch.float32),
    (torch.bfloat16, torch.float32, torch.bfloat16),
]
# relative to the largest element: a few roundings of the result, and of the masked weight
TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2.5e-2}


def agree(ours: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    scale = max(1.0, exact.abs().max().item()) if exact.numel() else 1.0
    torch.testing.assert_close(ours.double().cpu(), exact.cpu(), rtol=0, atol=TOLERANCE[dtype] * scale)


def forward(tensors: dict[str, Tensor], estimator: str, bias: bool = True, **offsets: int) -> tuple[Tensor, Tensor]:
    t, mask = tensors, Mask(tensors["seed"], tensors["draw"], 7, estimator, 0.7, **offsets)
    ours = masked_linear(t["x"], t["weight"], t["logits"], t["bias"] if bias else None, mask=mask)
    wide = [t[name].double() for name in ("x", "weight", "logits", "bias")]
    return ours, reference.masked_linear(*wide[:3], wide[3] if bias else None, mask=mask)


def backward(tensors: dict[str, Tensor], estimator: str, needs: tuple[bool, bool, bool], **offsets: int) -> zip:
    t, mask = tensors, Mask(tensors["seed"], tensors["draw"], 7, estimator, 0.7, **offsets)
    names = ("grad", "x", "weight", "logits")
    ours = masked_linear_backward(*(t[name] for name in names), mask=mask, needs=needs)
    exact = reference.masked_linear_backward(*(t[name].double() for name in names), mask=mask, needs=needs)
    return zip(ours, exact, (t["x"], t["weight"], t["logits"]), strict=True)


@pytest.fixture(autouse=True, params=ROUTES)
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(OVERRIDE, request.param)
    return request.param


@pytest.mark.parametrize("shape, dtypes", [((1, 5, 130, 33), DTYPES[2]), ((2, 9, 70, 20), DTYPES[0])], ids=str)
def test_the_kl_is_added_on_every_route(
    shape: tuple[int, int, int, int], dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    t = case(shape, dtypes, device)
    at = {"mask": Mask(t["seed"], t["draw"], 7), "needs": (True, True, True)}
    prior, scale = t["weight"].mT.contiguous().mT, torch.tensor(0.37, dtype=torch.float64, device=device)
    given = [t[name] for name in ("grad", "x", "weight", "logits")]
    without = masked_linear_backward(*given, **at)
    with_kl = masked_linear_backward(*given, **at, kl=KLTerm(prior, scale))
    assert torch.equal(with_kl[0], without[0]) and torch.equal(with_kl[1], without[1])
    pull, _ = reference.bernoulli_kl_backward(scale, t["logits"].double(), prior.double(), needs=(True, False))
    agree(with_kl[2], without[2].double() + pull, torch.float32)


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_values_and_gradients(
    estimator: str, dtypes: tuple[torch.dtype, ...], route: str, device: torch.device
) -> None:
    if route != "prepass" and dtypes[0] == torch.bfloat16 and device.type == "cpu":
        pytest.skip("the interpreter multiplies the bits of bfloat16")
    if route == "thresholds" and not estimator.startswith("straight_through"):
        pytest.skip("only hard masks have thresholds")
    tensors = case(SHAPES[1], dtypes, device)
    ours, exact = forward(tensors, estimator)
    assert ours.dtype == dtypes[0]
    agree(ours, exact, dtypes[0])
    for mine, wide, like in backward(tensors, estimator, (True, True, True)):
        assert mine.dtype == like.dtype and mine.shape == like.shape
        agree(mine, wide, dtypes[0])


@pytest.mark.parametrize("shape", SHAPES + EMPTY, ids=str)
def test_odd_and_empty_shapes(shape: tuple[int, int, int, int], device: torch.device) -> None:
    tensors = case(shape, DTYPES[0], device)
    agree(*forward(tensors, "straight_through"), torch.float32)
    for mine, wide, _ in backward(tensors, "straight_through", (True, True, True)):
        agree(mine, wide, torch.float32)


@pytest.mark.parametrize("needs", list(itertools.product((False, True), repeat=3)), ids=str)
def test_only_the_gradients_asked_for(needs: tuple[bool, bool, bool], device: torch.device) -> None:
    tensors = case(SHAPES[1], DTYPES[2], device)
    for (mine, wide, _), need in zip(backward(tensors, "straight_through_concrete", needs), needs, strict=True):
        assert (mine is not None) == need
        if need:
            agree(mine, wide, torch.float16)


@pytest.mark.parametrize("shape", [SHAPES[0], (1, 5, 130, 66)], ids=str)
@pytest.mark.parametrize("row, col", [(0, 64), (5, 0), (2**32 - 66, 2**34 - 256), (2, 71)])
def test_shards_on_every_route(shape: tuple[int, int, int, int], row: int, col: int, device: torch.device) -> None:
    tensors = case(shape, DTYPES[2], device)
    agree(*forward(tensors, "straight_through", row=row, col=col), torch.float16)
    for mine, wide, _ in backward(tensors, "straight_through", (True, True, True), row=row, col=col):
        agree(mine, wide, torch.float16)


@pytest.mark.parametrize("dtypes", DTYPES[:3:2], ids=str)
def test_reductions_split_among_many_programs(
    dtypes: tuple[torch.dtype, ...], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_sum, "multiprocessors", lambda device: 132)
    agree(*forward(case((1, 3, 330, 40), dtypes, device), "straight_through"), dtypes[0])
    for mine, wide, _ in backward(case((1, 3, 40, 330), dtypes, device), "straight_through", (True, True, True)):
        agree(mine, wide, dtypes[0])


def test_any_strides(device: torch.device) -> None:
    tensors = case(SHAPES[1], DTYPES[0], device, shared=True)
    for name in ("weight", "logits"):
        tensors[name] = tensors[name].mT.contiguous().mT
    tensors["grad"] = tensors["grad"].mT.contiguous().mT
    ours, exact = forward(tensors, "straight_through", bias=False)
    agree(ours, exact, torch.float32)
    for mine, wide, _ in backward(tensors, "straight_through", (True, True, True)):
        agree(mine, wide, torch.float32)


def test_the_mask_is_the_contract_s(device: torch.device) -> None:
    """With x the identity the output is the masked weight itself, bit for bit."""
    tensors = case((2, 130, 130, 33), DTYPES[0], device)
    tensors["x"] = torch.eye(130, device=device).expand(2, 130, 130)
    masked, _ = forward(tensors, "straight_through", bias=False)
    for i in range(2):
        threshold = reference.threshold_from_logits(tensors["logits"])
        keep = reference.keep_mask(threshold, mask=Mask(tensors["seed"], tensors["draw"][i : i + 1], 7))
        assert torch.equal(masked[i].mT, tensors["weight"] * keep)


def test_wide_strides_are_left_to_kernels_with_wide_offsets(
    route: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main loops address the rows of a step with 32 bits, so 64 strides must stay below 2^31."""
    assert 64 * kernel_module.REACH == 2**31
    t = case((1, 5, 70, 13), DTYPES[1], device)
    t |= {name: t[name].mT.contiguous().mT for name in ("x", "grad")}  # a stride of 5 between columns
    strides = []
    plain = kernel_module.masked_matmul
    monkeypatch.setattr(kernel_module, "REACH", 4)
    monkeypatch.setattr(
        kernel_module, "masked_matmul", lambda x, *a, **more: (strides.append(x.stride(2)), plain(x, *a, **more))[1]
    )
    monkeypatch.setattr(kernel_module, "one_pass", None)
    ours, exact = forward(t, "straight_through")
    agree(ours, exact, torch.float16)
    for one, other, like in backward(t, "straight_through", (True, True, True)):
        agree(one, other, like.dtype)
    assert strides == [1, 1] * (route != "prepass")
