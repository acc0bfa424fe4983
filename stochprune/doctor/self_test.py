"""A self-test of bits and gradients of each backend that works here, against the reference backend.

The reference itself is compared with published numbers of the mask contract first.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stochprune import backends, reference, rng
from stochprune.address import Logits, Mask
from stochprune.backends import Backend

VECTORS = (
    ((0, 0, 0, 0, 0), (0, 156), (20825, 49899, 50058, 21899)),
    ((81985529216486895, 5, 77, 0, 0), (1, 156), (8413, 2819, 779, 45944)),
    ((42, 1, 2**31 - 1, 3, 1000), (1, 36), (63864, 35227, 37363, 18492)),
    ((2**64 - 1, 2**32 - 1, 1, 2**32 - 6, 2**31 - 128), (1, 29), (13117, 46947, 59168, 7480)),
)
"""Bits of the contract's golden vectors: an address (seed, draw, stream, offsets of row and column), the position of
four weights in a row, their sixteen bits."""
ADDRESSES = (*(address for address, _, _ in VECTORS[:3]), (2**64 - 1, 2**32 - 1, 1, 2**32 - 40, 2**34 - 140))
SHAPE = (5, 37, 132)  # M, N, K: columns of more than two blocks of the kernels, with a remainder
ESTIMATORS = ("straight_through", "concrete")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # relative, of the norm of the whole tensor


class SelfTest(NamedTuple):
    """The result of one backend on one device; it passed if there are no failures."""

    backend: str
    device: str
    failures: tuple[str, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        return not self.failures


def self_tests() -> list[SelfTest]:
    """Test the contract, then each backend on each device that it serves; the C++ backend with each instruction set.

    A backend that no device here can use is left out, unless it accepts tensors of the CPU, as Triton's interpreter
    does.
    """
    done = [_timed("contract", "cpu", _contract)]
    for name in backends.MODULES:
        devices = [state.device for state in backends.states() if state.name == name and state.usable]
        for device in devices or _on_cpu(name):
            for label, variant in _variants(name):
                with variant:
                    done.append(_timed(label, device, functools.partial(_backend, name, device)))
    return done


def _on_cpu(name: str) -> list[str]:
    try:
        return ["cpu"] if backends.load(name).supports(torch.ones(1)) else []
    except Exception:  # the table of backends has the reason
        return []


def _variants(name: str) -> Iterator[tuple[str, contextlib.AbstractContextManager[None]]]:
    if name != "native":
        yield name, contextlib.nullcontext()
        return
    from stochprune import _C

    for instruction_set in _C.instruction_sets():
        yield f"native-{instruction_set}", instructions(instruction_set)


@contextlib.contextmanager
def instructions(name: str) -> Iterator[None]:
    """Let the C++ backend use an instruction set inside the context."""
    from stochprune import _C

    before = _C.instruction_set()
    _C.use_instruction_set(name)
    try:
        yield
    finally:
        _C.use_instruction_set(before)


def _timed(name: str, device: str, test: Callable[[], Iterator[str]]) -> SelfTest:
    start = time.perf_counter()
    failures: list[str] = []
    try:
        failures.extend(test())
    except Exception as error:  # a backend that is broken may raise anything
        text = str(error).strip() or "no message"
        failures.append(f"raised {type(error).__name__}: {text.splitlines()[0][:300]}")
    return SelfTest(name, device, tuple(failures), time.perf_counter() - start)


def _contract() -> Iterator[str]:
    """Compare the reference's bits with the golden vectors."""
    for address, (row, col), expected in VECTORS:
        bits = _mask(*address, device="cpu").uniform16(row + 1, col + 4)
        found = tuple(bits[row, col:].tolist())
        if found != expected:
            yield f"bits of the contract at {address}: {found} instead of {expected}"


def _backend(name: str, device: str) -> Iterator[str]:
    """Compare bits, products and gradients of a backend on a device with the reference on the CPU."""
    backend = backends.load(name)
    yield from _bits(backend, device)
    wide = device == "cpu" and backend.NAME in backends.TABLE["cpu"]  # a GPU compiles a kernel for each dtype
    for dtype in (torch.float32, torch.bfloat16) if wide else (torch.float32,):
        for estimator in ESTIMATORS:
            for what, found, expected in _products(backend, device, dtype, estimator):
                off = float((found.double().cpu() - expected).norm() / expected.norm())
                if not off <= TOLERANCE[dtype]:  # NaN fails
                    case = f"{str(dtype).removeprefix('torch.')}, {estimator}"
                    yield f"{what} ({case}): relative error {off:.1e}, allowed {TOLERANCE[dtype]:.0e}"


def _bits(backend: Backend, device: str) -> Iterator[str]:
    """Compare thresholds, keep masks at the addresses of the vectors, and 2:4 masks."""
    _, weight, logits, _ = _values()
    thresholds = reference.threshold_from_logits(Logits(logits))
    found = backend.threshold_from_logits(Logits(logits.to(device))).cpu()
    off = int((found.int() - thresholds.int()).abs().max())
    if off > (backend.NAME not in backends.TABLE["cpu"]):  # kernels of a GPU form them in float32
        yield f"thresholds of logits: off by {off}"
    for address in ADDRESSES:
        at, there = _mask(*address, device="cpu"), _mask(*address, device=device)
        kept = backend.keep_mask(thresholds.to(device), mask=there).cpu()
        yield from _different(f"keep mask at {address}", kept, reference.keep_mask(thresholds, mask=at))
        masked = [
            b.nm_masked_weight(weight.to(where), Logits(logits.to(where)), (2, 4), mask=m, dtype=torch.float32).cpu()
            for b, m, where in ((backend, there, device), (reference, at, "cpu"))
        ]
        yield from _different(f"2:4 mask at {address}", *masked)


def _different(what: str, found: Tensor, expected: Tensor) -> Iterator[str]:
    if wrong := int((found != expected).sum()):
        yield f"{what}: {wrong} of {expected.numel()} weights differ"


def _products(
    backend: Backend, device: str, dtype: torch.dtype, estimator: str
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield a name, the backend's result and the reference's float64 result, for the product and each gradient."""
    x, weight, logits, grad = (value.to(dtype) for value in _values())
    bias = weight[:, 0].contiguous()

    def results(by: Any, where: str, kind: torch.dtype) -> list[Tensor]:
        a, w, s, g, b = (value.to(where, kind) for value in (x[None], weight, logits, grad[None], bias))
        at = _mask(*ADDRESSES[1], device=where)._replace(estimator=estimator)
        gradients = by.masked_linear_backward(g, a, w, Logits(s), mask=at, needs=(True, True, True))
        return [by.masked_linear(a, w, Logits(s), b, mask=at), *gradients]

    names = ("product", "gradient of x", "gradient of the weight", "gradient of the logits")
    return zip(names, results(backend, device, dtype), results(reference, "cpu", torch.float64), strict=True)


def _values() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x [M, K], weight and logits [N, K], grad [M, N], the same numbers on every machine."""
    m, n, k = SHAPE

    def wave(rows: int, cols: int, step: float, scale: float) -> Tensor:
        return (torch.arange(rows * cols, dtype=torch.float64).mul(step).sin() * scale).float().view(rows, cols)

    return wave(m, k, 0.7, 1), wave(n, k, 1.3, 1), wave(n, k, 2.1, 4), wave(m, n, 1.7, 1)


def _mask(seed: int, draw: int, stream: int, row: int, col: int, *, device: str) -> Mask:
    seeds = torch.tensor([rng.as_int64(seed)], device=device)
    return Mask(seeds, torch.tensor([draw], device=device), stream, row=row, col=col)
