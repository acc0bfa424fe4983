"""Time all contenders: a forward pass and a whole step, inside a CUDA graph and eagerly, with launches and memory.

A case is one contender at one size. The most interesting sizes come first, because the time limit may end the list.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.gpu import device
from bench.gpu.device import healthy as healthy
from bench.gpu.device import lost as lost
from bench.suite import costs
from bench.suite.ops.linear_ways import CONTENDERS, Forward
from stochprune.address import Logits
from stochprune.functional import masked_linear
from stochprune.kernels.thresholds import cache, packed_thresholds
from stochprune.training.activations import saved_bytes

TOKENS = (16, 64, 128, 4096)
SQUARE, WIDE = (4096, 4096), (8192, 8192)
MLP = ((14336, 4096), (4096, 14336))  # N, K of Llama 3 8B
FIRST = ("dense", "in_register", "thresholds", "prepass")
COMPILE = ("compile",)  # after the others, since it compiles for a long time and may hang until it is killed
FORMED = "formed"  # our route "thresholds", if the optimiser has formed them: their pass is not in these times
THEN = (FORMED, "cuda", "eager", "bernoulli", "seed replay")
ROTATED = 1 << 28  # bytes of weights in one graph: several times the second-level cache, also for the dense layer


class Size(NamedTuple):
    """x [m, k] with weights [n, k]. The text of a size is the name of its case."""

    m: int
    n: int
    k: int
    masters: str = "bf16"  # dtype of weights and logits; x is in bfloat16
    masks: str = "one"  # or "each": a mask for each example

    def __str__(self) -> str:
        return f"M={self.m} {self.n}x{self.k} {self.masters} {self.masks}"

    @classmethod
    def read(cls, text: str) -> Size:
        """Return the size whose text is ``text``."""
        tokens, weights, masters, masks = text.split()
        n, k = weights.split("x")
        return cls(int(tokens.removeprefix("M=")), int(n), int(k), masters, masks)


PLAN: list[tuple[Size, str]] = [
    *((Size(m, *SQUARE), c) for some in (FIRST, COMPILE) for m in TOKENS for c in some),
    *((Size(m, *WIDE), c) for some in (FIRST, COMPILE) for m in TOKENS for c in some),
    *((Size(m, *SQUARE, "fp32"), c) for m in (128, 16, 4096) for c in (*FIRST, FORMED, *COMPILE)),
    *((Size(16, *SQUARE, masks="each"), c) for c in ("in_register", "eager")),
    *((Size(m, *SQUARE), c) for c in THEN for m in TOKENS),
    *((Size(m, n, k), c) for n, k in MLP for m in (128, 4096) for c in (*FIRST, *COMPILE)),
    *((Size(m, *SQUARE), c) for m in (8192, 1, 256, 512, 1024, 16384) for c in (*FIRST, *COMPILE)),
]


def cases() -> list[str]:
    """Return ``ceilings``, then all pairs of size and contender."""
    device.require()
    return ["ceilings", *(f"{size} | {contender}" for size, contender in PLAN)]


def run(case: str) -> Iterator[dict[str, Any]]:
    """Yield microseconds, bytes and launches of one contender at one size, or the error of a measurement."""
    if case == "ceilings":
        yield ceilings()
        return
    text, contender = case.split(" | ")
    size, here = Size.read(text), torch.device(device.DEVICE)
    torch._dynamo.reset()
    with taken(contender) as make:
        forwards, steps, owned = calls(size, make, contender)
        found: dict[str, Any] = {**size._asdict(), "contender": contender, "forward": {}, "step": {}}
        runs: dict[str, Sequence[device.Run]] = {"forward": forwards, "step": steps}
        for name in runs:
            found[name]["eager_us"] = device.eager_us(runs[name][0])
        step = found["step"]
        step["host_us"] = attempt(lambda: costs.host_us(steps[0], here))
        step["peak_bytes"] = attempt(lambda: costs.peak_bytes(steps[0], here))
        step["saved_bytes"] = attempt(lambda: saved_bytes(steps[0].forward, owned))
        yield found
        for name in runs:  # last, since a failed capture may leave torch's generator or allocator broken
            found[name]["graph_us"] = attempt(lambda: device.graph_us(runs[name]))  # noqa: B023 - called at once
        yield found
        step["launches"] = attempt(lambda: costs.launches(steps[0], here))
        yield found


def attempt(measure: Callable[[], Any]) -> Any:
    """Return the measurement, or the text of its error: a contender that cannot be captured has eager times still."""
    try:
        return measure()
    except Exception as error:
        if device.lost():  # a kernel failed, so later measurements would be wrong
            raise
        return f"{type(error).__name__}: {error}"[:300]


@contextlib.contextmanager
def taken(contender: str) -> Iterator[Callable[[Tensor, Tensor, Tensor], Forward]]:
    """Give the function that makes the contender's forward; if it is one of our ways, use it inside the block."""
    if contender in CONTENDERS:
        yield CONTENDERS[contender]
    else:
        with device.forced("thresholds" if contender == FORMED else contender):
            yield CONTENDERS["ours"]


class Step:
    """A forward and backward pass on tensors of its own."""

    def __init__(self, layer: Forward, x: Tensor, wanted: list[Tensor], grad: Tensor) -> None:
        self.layer, self.x, self.wanted, self.grad = layer, x, wanted, grad

    def forward(self) -> Tensor:
        """Return the output."""
        return self.layer(self.x)

    def __call__(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.forward(), self.wanted, self.grad)


def calls(
    size: Size, make: Callable[[Tensor, Tensor, Tensor], Forward], contender: str
) -> tuple[list[Callable[[], Tensor]], list[Step], list[Tensor]]:
    """Return forwards without autograd and steps, one for each of several sets of tensors, and the first set."""
    generator = torch.Generator(device.DEVICE).manual_seed(0)

    def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device.DEVICE, dtype=dtype).requires_grad_()

    masters = torch.float32 if size.masters == "fp32" else torch.bfloat16
    count = min(8, max(2, ROTATED // (masters.itemsize * size.n * size.k)))
    x, bias, grad = tensor(size.m, size.k), tensor(size.n), tensor(size.m, size.n).detach()
    sets = [[tensor(size.n, size.k, dtype=masters) for _ in range(2)] for _ in range(count)]
    if contender == FORMED:
        for _, logits in sets:
            cache.maintain(Logits(logits), packed_thresholds(Logits(logits.detach())))
    if size.masks == "each":
        make = each_example(make is CONTENDERS["ours"])
    steps = [
        Step(make(weight, logits, bias), x, [x, weight, bias, *([] if contender == "dense" else [logits])], grad)
        for weight, logits in sets
    ]
    forwards = [torch.no_grad()(step.forward) for step in steps]
    return forwards, steps, [x, bias, grad, *sets[0]]


def each_example(ours: bool) -> Callable[[Tensor, Tensor, Tensor], Forward]:
    """Return a layer with one mask per example: ours, or one in plain PyTorch with masked weights for a whole batch."""

    def make_ours(weight: Tensor, logits: Tensor, bias: Tensor) -> Forward:
        seed = torch.zeros(1, dtype=torch.int64, device=weight.device)

        def forward(x: Tensor) -> Tensor:
            draw = torch.arange(len(x), device=x.device)
            return masked_linear(x, weight, logits, bias, seed=seed, draw=draw, stream=2)

        return forward

    def make_eager(weight: Tensor, logits: Tensor, bias: Tensor) -> Forward:
        def forward(x: Tensor) -> Tensor:
            q = torch.sigmoid(logits)
            mask = (torch.rand(len(x), *q.shape, device=q.device, dtype=q.dtype) < q).to(q.dtype)
            masked = (weight * (mask - q.detach() + q)).to(x.dtype)
            return torch.bmm(masked, x[:, :, None])[:, :, 0] + bias

        return forward

    return make_ours if ours else make_eager


def ceilings() -> dict[str, float]:
    """Return the bandwidth of a copy, bytes read and written, and the rate of a large bfloat16 product."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=device.DEVICE)
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device=device.DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return {
        "copy_tb_per_s": 2 * source.nbytes / device.eager_us(lambda: target.copy_(source)) / 1e6,
        "matmul_tflop_per_s": 2 * 8192**3 / device.eager_us(lambda: a @ b) / 1e6,
    }
