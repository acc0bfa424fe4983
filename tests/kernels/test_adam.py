"""AdamW in one launch: the numbers of torch's AdamW, and the bits of packed_thresholds."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import stochprune as sp
from stochprune.kernels import adam, layers
from stochprune.kernels.routes import OVERRIDE
from stochprune.kernels.thresholds import cache, packed_thresholds
from stochprune.memory_format import channels_last
from stochprune.training.groups import LOGITS, WEIGHTS
from tests.runs import owners

SHAPES = [(5, 7), (33, 130), (16, 128), (3, 2, 2, 2), (1, 1), (0, 4)]
STEPS = 3


@pytest.fixture(autouse=True)
def triton_serves(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("STOCHPRUNE_BACKEND", "triton")
    yield
    cache.clear()


def parameters(shapes: list[tuple[int, ...]], device: torch.device, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    g = torch.Generator().manual_seed(5)
    return [nn.Parameter(torch.randn(shape, generator=g).to(device, dtype)) for shape in shapes]


def copies(groups: list[dict[str, object]]) -> list[dict[str, object]]:
    return [copy.deepcopy(group) for group in groups]


def of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def train(*optimizers: torch.optim.Optimizer, steps: int = STEPS) -> None:
    """Make steps with the same gradients, in the dtype of each optimiser's parameters."""
    g = torch.Generator().manual_seed(6)
    for _ in range(steps):
        for together in zip(*map(of, optimizers), strict=True):
            grad = torch.randn(together[0].shape, generator=g)
            for p in together:
                p.grad = grad.to(p)
        for optimizer in optimizers:
            optimizer.step()


def assert_near(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer, tolerance: float = 1e-6) -> None:
    for p, q in zip(of(ours), of(theirs), strict=True):
        if p.numel():
            assert (p.to(q) - q).abs().max() <= tolerance * q.abs().max()
        for name in ("step", "exp_avg", "exp_avg_sq"):
            got, want = (each.state[t][name] for each, t in ((ours, p), (theirs, q)))
            torch.testing.assert_close(got.to(want), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.99), (0.5, 0.0)])
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_steps_of_torch(betas: tuple[float, float], lr: float | Tensor, device: torch.device) -> None:
    lr = lr.to(device) if isinstance(lr, Tensor) else lr
    logits, weights = parameters(SHAPES, device), parameters([(11,), (), (1500,), (3, 2, 2, 2)], device)
    groups = [
        {"params": logits, "lr": lr, "name": LOGITS, "weight_decay": 0.0},
        {"params": weights, "name": WEIGHTS, "weight_decay": 0.2, "eps": 1e-3},
    ]
    ours = sp.MaskedAdamW(copies(groups), betas=betas, lr=lr / 50)
    theirs = torch.optim.AdamW(copies(groups), betas=betas, lr=lr / 50)
    train(ours, theirs)
    assert_near(ours, theirs)
    for p in of(ours)[: len(SHAPES)]:
        assert torch.equal(cache.find(p), packed_thresholds(p.detach()))
    assert all(cache.find(p) is None for p in of(ours)[len(SHAPES) :])


@pytest.mark.parametrize("steps, beta", [(1, 0.9999), (1, 0.5), (1, 0.7), (40, 0.99), (500, 0.5)])
def test_the_corrections_are_exact(steps: int, beta: float, device: torch.device) -> None:
    """If 1 - beta^t were rounded after a cancellation, the first steps would differ by 1e-4 and more."""
    p, grad = torch.zeros(64, 64, device=device), torch.full((64, 64), 0.5, device=device)
    m, v = torch.full_like(p, 0.25), torch.full_like(p, 0.125)
    step = torch.tensor(float(steps), device=device)
    adam.adamw([adam.Parameter(p, grad, m, v, step, None)], lr=0.1, betas=(beta, beta), eps=0.0, weight_decay=0.0)
    first, second = 0.25 * beta + 0.5 * (1 - beta), 0.125 * beta + 0.25 * (1 - beta)
    correction = 1 - beta**steps
    expected = -0.1 * first / correction / (second / correction) ** 0.5
    torch.testing.assert_close(p, torch.full_like(p, expected), rtol=1e-6, atol=0)


def test_bfloat16_is_computed_in_float32_and_rounded_once(device: torch.device) -> None:
    shapes = [(16, 48), (7, 9)]
    ours = sp.MaskedAdamW([{"params": parameters(shapes, device, torch.bfloat16), "name": LOGITS}], lr=0.1)
    wide = [{"params": [nn.Parameter(p.detach().float()) for p in of(ours)]}]
    theirs = torch.optim.AdamW(wide, lr=0.1)
    train(ours, theirs, steps=1)
    for p, q in zip(of(ours), of(theirs), strict=True):
        assert p.dtype == ours.state[p]["exp_avg"].dtype == torch.bfloat16
        torch.testing.assert_close(p, q.bfloat16(), rtol=2**-7, atol=0)
        assert torch.equal(cache.find(p), packed_thresholds(p.detach()))


def test_memory_formats(device: torch.device) -> None:
    """Gradients and moments get the format of their filter; only contiguous logits have thresholds."""
    given = [t.detach() for t in parameters([(4, 6, 3, 3), (5, 3, 2, 2)], device)]
    last = [nn.Parameter(t.to(memory_format=torch.channels_last)) for t in given]
    ours = sp.MaskedAdamW([{"params": [*last, nn.Parameter(given[0].clone())], "name": LOGITS}], lr=0.1)
    theirs = torch.optim.AdamW([nn.Parameter(t.clone()) for t in (*given, given[0])], lr=0.1)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()) | {"param_groups": ours.state_dict()["param_groups"]})
    train(ours, theirs)
    assert_near(ours, theirs)
    assert all(channels_last(ours.state[p]["exp_avg"]) and cache.find(p) is None for p in last)
    assert cache.find(of(ours)[2]) is not None


def test_addresses_that_are_no_multiple_of_16(device: torch.device) -> None:
    """As of gradients in the buckets of a distributed model."""
    flat = torch.zeros(2, 1 + 32 * 64, device=device)
    p = nn.Parameter(flat[0, 1:].view(32, 64))
    ours, theirs = (sp.MaskedAdamW([p], lr=0.1), torch.optim.AdamW([nn.Parameter(torch.zeros_like(p))], lr=0.1))
    train(theirs)
    g = torch.Generator().manual_seed(6)
    for _ in range(STEPS):
        p.grad = flat[1, 1:].view(32, 64).copy_(torch.randn(32, 64, generator=g))
        ours.step()
    assert_near(ours, theirs)
    assert flat[:, 0].tolist() == [0.0, 0.0]


def test_parameters_without_a_gradient_are_left_out(device: torch.device) -> None:
    first, second = parameters([(8, 64), (8, 64)], device)
    ours = sp.MaskedAdamW([{"params": [first, second], "name": LOGITS}])
    before = second.detach().clone()
    first.grad = torch.ones_like(first)
    ours.step()
    assert torch.equal(second, before) and second not in ours.state and cache.find(second) is None
    second.grad = torch.ones_like(second)
    ours.step()
    assert [ours.state[p]["step"].item() for p in (first, second)] == [2.0, 1.0]


def test_autograd_sees_the_change(device: torch.device) -> None:
    p = parameters([(8, 64)], device)[0]
    loss = (p * p).sum()
    p.grad = torch.ones_like(p)
    sp.MaskedAdamW([p]).step()
    with pytest.raises(RuntimeError, match="version"):
        loss.backward()


@pytest.mark.parametrize("thresholds", [True, False])
def test_a_layer_reads_the_thresholds(thresholds: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mask is that of thresholds formed anew; a change of the logits by anything else is noticed."""
    monkeypatch.setenv(OVERRIDE, "thresholds")
    model = sp.convert(owners.dense(hidden=70), keep_kept=0.6).to(device)  # two layers
    optimizer = sp.MaskedAdamW(sp.parameter_groups(model, 1e-3), thresholds=thresholds)
    x = owners.problem()[0].to(device)
    model(x).square().sum().backward()
    optimizer.step()
    formed = []
    monkeypatch.setattr(cache, "_form", lambda logits: formed.append(logits) or packed_thresholds(logits))

    def run(module: nn.Module, count: int) -> Tensor:
        formed.clear()
        y = module(x)
        assert len(formed) == count
        return y

    again = copy.deepcopy(model)
    assert torch.equal(run(model, 0 if thresholds else 2), run(again, 2))
    with torch.no_grad():
        model[0].mask_logits.sub_(1)
    run(model, 1 if thresholds else 2)


def test_the_thresholds_stay_at_one_address(device: torch.device) -> None:
    """A CUDA graph reads them there."""
    ours = sp.MaskedAdamW([{"params": parameters([(8, 64)], device), "name": LOGITS}])
    addresses = set()
    for _ in range(3):
        train(ours, steps=1)
        addresses.add(cache.find(of(ours)[0]).data_ptr())
    assert len(addresses) == 1
    restored = copy.deepcopy(ours)
    train(restored, steps=1)
    assert cache.find(of(restored)[0]).data_ptr() not in addresses


def test_a_captured_step_copies_nothing_from_the_host(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its table is the one of the step before, and it stays."""
    ours = sp.MaskedAdamW([{"params": parameters([(8, 64), (5, 7)], device), "name": LOGITS}])
    train(ours, steps=1)
    monkeypatch.setattr(layers, "_captured", {})
    with monkeypatch.context() as patched:
        patched.setattr(torch, "tensor", lambda *args, **options: pytest.fail("a copy from the host"))
        patched.setattr(layers, "capturing", lambda device: True)
        ours.step()
    assert len(layers._captured) == 2  # one of each alignment
    for p in of(ours):
        assert torch.equal(cache.find(p), packed_thresholds(p.detach()))
