"""Benchmark of the stochastic linear layer on the CPU against the ways to write it in plain PyTorch, in one run.

    make bench

Each case is one contender at one size. The contenders of a size run one after the other, and ``bench.report`` computes
ratios of their medians. Every step uses a fresh mask.
"""

from __future__ import annotations

import pytest
import torch
import torch._functorch.config
from torch import Tensor

from bench.baselines import CONTENDERS
from bench.memory import peak_bytes, saved_bytes
from bench.tables import WITHOUT_AMX
from stochprune import _C, native
from stochprune.address import Mask
from stochprune.native.masked import masked

SIZES = [(1024, 128), (4096, 128), (4096, 512)]  # square weight, batch
PARTS = ["forward", "backward", "step"]
MODES = ["joint", "mask-only"]
torch._functorch.config.donated_buffer = False  # the compiled backward runs several times on one graph
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Layer:
    """One contender at one size: its tensors and the three timed functions."""

    def __init__(self, contender: str, width: int, batch: int, dtype: torch.dtype, mode: str) -> None:
        generator = torch.Generator().manual_seed(0)

        def make(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(dtype)

        self.x, self.grad = make(batch, width).requires_grad_(), make(batch, width)
        # The dense layer trains its weights in both modes, because training a mask needs the weight gradient too.
        trains_weight = mode == "joint" or contender == "dense"
        self.weight = (make(width, width) / width**0.5).requires_grad_(trains_weight)
        self.logits = make(width, width).requires_grad_()
        self.bias = make(width).requires_grad_()
        torch._dynamo.reset()
        self._forward = CONTENDERS[contender](self.weight, self.logits, self.bias)
        trained = [self.x, self.weight, self.logits, self.bias]
        self.trained = [t for t in trained if t.requires_grad and not (contender == "dense" and t is self.logits)]

    def forward(self) -> Tensor:
        return self._forward(self.x)

    def backward(self, y: Tensor, retain: bool) -> None:
        # The gradients are freed at once, as by zero_grad() before the next step.
        torch.autograd.grad(y, self.trained, self.grad, retain_graph=retain)

    def step(self) -> None:
        self.backward(self.forward(), retain=False)

    def memory(self) -> dict[str, float]:
        """Return bytes per weight: those saved for backward, and the peak of a step including gradients."""
        owned = [self.x, self.weight, self.logits, self.bias]
        weights, saved = self.weight.numel(), saved_bytes(self.forward, owned)
        native.workspace.release()  # so that its memory is counted
        return {"saved": saved / weights, "peak": peak_bytes(self.step) / weights}


@pytest.fixture
def made(contender, dtype):
    """Set up a contender, and return the name under which it is made."""
    if contender != WITHOUT_AMX:
        yield contender
        return
    if dtype != "bf16" or _C.instruction_set() != "amx":
        pytest.skip("AMX serves bfloat16, on processors that have it")
    _C.use_instruction_set("avx512")
    yield "ours"
    _C.use_instruction_set("amx")


@pytest.mark.parametrize("contender", [*CONTENDERS, WITHOUT_AMX])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "batch"), SIZES, ids=[f"{w}x{b}" for w, b in SIZES])
def test_linear(benchmark, width, batch, dtype, mode, part, contender, made):
    if (batch, part) not in {(128, "forward"), (128, "backward"), (128, "step"), (512, "step")}:
        pytest.skip("the larger batch is timed by the step")
    layer = Layer(made, width, batch, DTYPES[dtype], mode)
    run = layer.forward if part == "forward" else layer.step
    if part == "backward":
        y = layer.forward()
        run = lambda: layer.backward(y, retain=True)  # noqa: E731
    rounds = 7 if width > 2000 else 15
    benchmark.extra_info.update(width=width, batch=batch, dtype=dtype, mode=mode, part=part, contender=contender)
    benchmark.pedantic(run, rounds=rounds, warmup_rounds=2)
    if part == "step":
        benchmark.extra_info.update(layer.memory())


@pytest.mark.parametrize("what", ["copy", "mask, cached thresholds", "mask", "thresholds"])
def test_sampling(benchmark, what):
    """Time sampling and masking of a 4096 x 4096 fp32 weight, and a copy of it."""
    generator = torch.Generator().manual_seed(0)
    weight, logits = (torch.randn(4096, 4096, generator=generator) for _ in range(2))
    out, threads = torch.empty_like(weight), torch.get_num_threads()
    native.cache.enabled = "cached" in what
    layer = masked(weight, logits, Mask(torch.tensor([1]), torch.tensor([1]), 2))
    native.cache.enabled = False
    runs = {"copy": lambda: out.copy_(weight), "thresholds": lambda: native.threshold_from_logits(logits)}
    benchmark.extra_info.update(what=what)
    benchmark.pedantic(runs.get(what, lambda: _C.masked_weight(layer, out, False, threads)), rounds=25, warmup_rounds=3)
