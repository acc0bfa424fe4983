"""Convolutions, embeddings and whole networks have the CPU's masks, values and gradients on a GPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch

import stochprune as sp
from stochprune import functional
from stochprune.models import gpt, resnet20

AT = {"seed": 3, "draw": 5, "stream": 7}


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


@pytest.mark.parametrize("options", [{}, {"samples": 3}, {"draw": torch.arange(4)}], ids=str)
@pytest.mark.parametrize("op", ["masked_conv2d", "masked_conv_transpose2d"])
def test_convolutions(op: str, options: dict[str, object], device: torch.device) -> None:
    g = torch.Generator().manual_seed(1)
    inputs = [torch.randn(s, generator=g).requires_grad_() for s in ((4, 8, 9, 9), (8, 8, 3, 3), (8, 8, 3, 3), (8,))]
    there = [t.detach().to(device).requires_grad_() for t in inputs]
    at = {**AT, **options}
    expected = getattr(functional, op)(*inputs, **at, padding=1)
    at = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in at.items()}
    y = getattr(functional, op)(*there, **at, padding=1)
    torch.testing.assert_close(y.cpu(), expected, rtol=1e-4, atol=1e-4)
    for got, want in zip(
        torch.autograd.grad(y.sin().sum(), there), torch.autograd.grad(expected.sin().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", ["resnet20", "gpt"])
def test_networks(name: str, together: bool, device: torch.device) -> None:
    if name == "gpt":
        model, x = gpt(13, 12, width=24, depth=2, heads=3, seed=0), (torch.arange(24) % 13).view(2, 12)
    else:
        model, x = resnet20(3, width=8, seed=0), torch.linspace(-1, 1, 4 * 3 * 256).view(4, 3, 16, 16)
    here = sp.convert(model, keep_kept=0.7).train()
    there = copy.deepcopy(here).to(device)
    here(x).square().mean().backward()
    if together:
        with sp.nn.fused_masking(there):
            loss = there(x.to(device)).square().mean()
    else:
        loss = there(x.to(device)).square().mean()
    loss.backward()
    for (key, p), q in zip(there.named_parameters(), here.parameters(), strict=True):
        assert (p.grad.cpu() - q.grad).norm() <= 1e-2 * q.grad.norm() + 1e-6, key
