"""Captured and compiled steps: every replay samples a fresh mask, and no step compiles anything again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import triton

import stochprune as sp
from stochprune.address import Mask
from stochprune.kernels import masked_linear
from stochprune.kernels.routes import OVERRIDE, ROUTES
from tests.gpu.graphs import captured


@pytest.fixture
def compiled_kernels() -> Iterator[list[str]]:
    """The names of the kernels that Triton compiles from here on."""
    names: list[str] = []
    before = triton.knobs.runtime.jit_post_compile_hook
    triton.knobs.runtime.jit_post_compile_hook = lambda *args, **kwargs: names.append(str(kwargs.get("repr")))
    yield names
    triton.knobs.runtime.jit_post_compile_hook = before


@pytest.mark.parametrize("route", ROUTES)
def test_a_graph_samples_fresh_masks(route: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OVERRIDE, route)
    g = torch.Generator().manual_seed(1)
    x, weight, logits = (
        torch.randn(shape, generator=g).bfloat16().to(device) for shape in ((1, 32, 512), (384, 512), (384, 512))
    )
    seed, draw = torch.tensor([8], device=device), torch.tensor([5], device=device)

    def run() -> torch.Tensor:
        return masked_linear(x, weight, logits, None, mask=Mask(seed, draw, 3))

    graph, result = captured(run)
    seen = []
    for value in (5, 6, 2**32 - 1):
        draw.fill_(value)
        graph.replay()
        assert torch.equal(result, run())
        seen.append(result.clone())
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    seed.fill_(9)
    graph.replay()
    assert not torch.equal(result, seen[2])


def test_steps_compile_nothing_again(device: torch.device, compiled_kernels: list[str]) -> None:
    g = torch.Generator().manual_seed(1)
    weight, logits = (torch.randn(256, 512, generator=g).to(device).requires_grad_() for _ in range(2))
    x = torch.randn(64, 512, generator=g).bfloat16().to(device)

    def step(seed: int, draw: int, stream: int, tokens: int) -> None:
        y = sp.functional.masked_linear(x[:tokens], weight, logits, seed=seed, draw=draw, stream=stream)
        y.square().sum().backward()

    step(0, 0, 1, 64)
    compiled_kernels.clear()
    for i, tokens in enumerate((64, 63, 50, 33)):  # one size of tile
        step(2**63 + i, 2**32 - 1 - i, 16 * i, tokens)
    assert compiled_kernels == []


def test_torch_compile_gives_the_eager_bits(device: torch.device, compiled_kernels: list[str]) -> None:
    g = torch.Generator().manual_seed(1)
    weight, logits, x = (torch.randn(shape, generator=g).to(device) for shape in ((96, 130), (96, 130), (16, 130)))

    def layer(x: torch.Tensor, seed: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
        return sp.functional.masked_linear(x.relu(), weight, logits, seed=seed, draw=draw, stream=4).relu()

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True)
    seed, draw = torch.tensor([3], device=device), torch.tensor([0], device=device)
    compiled(x, seed, draw), layer(x, seed, draw)
    compiled_kernels.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(4):
            draw += 1
            assert torch.equal(compiled(x, seed, draw), layer(x, seed, draw))
    assert compiled_kernels == []


def test_streams_and_the_current_device(device: torch.device) -> None:
    g = torch.Generator().manual_seed(1)
    other = torch.device("cuda", torch.cuda.device_count() - 1)
    x, weight, logits = (torch.randn(shape, generator=g) for shape in ((1, 16, 128), (64, 128), (64, 128)))

    def run(device: torch.device) -> torch.Tensor:
        mask = Mask(torch.tensor([1], device=device), torch.tensor([2], device=device), 3)
        return masked_linear(x.to(device), weight.to(device), logits.to(device), None, mask=mask)

    expected = run(device).cpu()
    with torch.cuda.stream(torch.cuda.Stream(other)):
        assert torch.equal(run(other).cpu(), expected)
