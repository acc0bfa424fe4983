"""MaskedAdamW on a GPU: a captured training step, and the numbers of torch's fused AdamW."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import stochprune as sp
from stochprune.kernels.routes import OVERRIDE
from stochprune.kernels.thresholds import cache, packed_thresholds
from tests.gpu.graphs import captured


def model_of(device: torch.device) -> nn.Module:
    return sp.convert(sp.models.mlp((192, 320, 10), seed=0), keep_kept=0.6, seed=3).to(device)


def logits_of(model: nn.Module) -> list[Tensor]:
    return [layer.mask_logits for layer in sp.nn.masked_layers(model).values()]


@pytest.mark.parametrize("route", ["in_register", "thresholds"])
def test_replays_equal_eager_steps(route: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole step: forward, backward, optimiser. The learning rate changes between the steps."""
    monkeypatch.setenv(OVERRIDE, route)
    x = torch.randn(64, 192, generator=torch.Generator().manual_seed(1)).to(device)
    rates = (0.02, 0.01, 0.005)
    results = []
    for graphed in (False, True):
        model = model_of(device)
        lr = torch.tensor(0.02, device=device)
        optimizer = sp.MaskedAdamW(sp.parameter_groups(model, 1e-2))
        for group in optimizer.param_groups:
            group["lr"] = lr

        def step(model: nn.Module = model, optimizer: sp.MaskedAdamW = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = model(x).square().sum()
            loss.backward()
            optimizer.step()
            return loss.detach()

        if graphed:
            graph, _ = captured(step)  # makes one step
        else:
            step()
        for rate in rates:
            lr.fill_(rate)
            graph.replay() if graphed else step()
        assert {state["step"].item() for state in optimizer.state.values()} == {1.0 + len(rates)}
        for logits in logits_of(model):
            assert torch.equal(cache.find(logits), packed_thresholds(logits.detach()))
        results.append([p.detach().clone() for p in model.parameters()])
    for eager, replayed in zip(*results, strict=True):
        assert torch.equal(eager, replayed)


@pytest.mark.parametrize("shape", [(4096, 1024), (77, 333), (5,)])
def test_steps_of_torch(shape: tuple[int, ...], device: torch.device) -> None:
    g = torch.Generator().manual_seed(2)
    ours = [nn.Parameter(torch.randn(shape, generator=g).to(device))]
    theirs = copy.deepcopy(ours)
    optimizers = [
        sp.MaskedAdamW([{"params": ours, "name": "logits"}], lr=0.01),
        torch.optim.AdamW(theirs, lr=0.01, fused=True),
    ]
    for _ in range(5):
        ours[0].grad = torch.randn(shape, generator=g).to(device)
        theirs[0].grad = ours[0].grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert (ours[0] - theirs[0]).abs().max() <= 2e-6 * theirs[0].abs().max()
    if len(shape) > 1:
        assert torch.equal(cache.find(ours[0]), packed_thresholds(ours[0].detach()))
