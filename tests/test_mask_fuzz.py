"""A seeded fuzz of mask bits: native code on each instruction set against the executable reference.

Addresses lie near the ends of their ranges. Logits hold infinities, -0.0, denormals, the largest numbers, boundaries
between thresholds, and for many weights the one boundary that its own uniform decides by; a NaN is refused.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stochprune import patterns, reference, rng
from stochprune.address import Mask

native = pytest.importorskip("stochprune.native")
from stochprune import _C  # noqa: E402
from stochprune.doctor.self_test import instructions  # noqa: E402

INF = float("inf")
SPECIAL = [INF, -INF, 0.0, -0.0, 1e-45, -1e-45, 1e-38, 3.4028235e38, -3.4028235e38, 88.0, -88.0, 104.0, -104.0, 10.4,
           10.397177, -10.397177, 16.0, -16.0, 8.0, -8.0]  # fmt: skip
EDGES = torch.logit((torch.arange(2, 32768).double() - 0.5) / 32768).float()
PATTERNS = [(1, 2), (1, 4), (2, 4), (3, 4), (1, 8), (2, 8), (3, 8), (4, 8)]


def near(numbers: np.random.Generator, limit: int, room: int) -> int:
    """A number in 0 .. limit - room, as a rule near an end."""
    top = limit - room
    kind = numbers.integers(4)
    if kind == 0:
        return int(numbers.integers(min(300, top) + 1))
    return (
        top - int(numbers.integers(min(300, top) + 1))
        if kind < 3
        else int(numbers.integers(top, endpoint=True, dtype=np.uint64))
    )


def logits_of(numbers: np.random.Generator, u: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    rows, cols = u.shape
    plain = torch.from_numpy(numbers.normal(size=(rows, cols)) * 10.0 ** numbers.integers(-3, 3)).float()
    special = torch.tensor(SPECIAL)[torch.from_numpy(numbers.integers(len(SPECIAL), size=(rows, cols)))]
    edges = EDGES[torch.from_numpy(numbers.integers(len(EDGES), size=(rows, cols)))]
    to = torch.tensor(numbers.choice([-INF, INF])).float()
    own = EDGES[(u.long() - 1).clamp(0, len(EDGES) - 1)].masked_fill(u == 0, -INF).masked_fill(u == 32767, INF)
    edges = torch.where(torch.from_numpy(numbers.random((rows, cols)) < 0.7), own, edges)
    edges = torch.where(torch.from_numpy(numbers.random((rows, cols)) < 0.5), edges, torch.nextafter(edges, to))
    kind = torch.from_numpy(numbers.integers(3, size=(rows, cols)))
    return torch.where(kind == 0, plain, torch.where(kind == 1, special, edges)).to(dtype)


def one_round(numbers: np.random.Generator) -> None:
    rows, cols = int(numbers.integers(1, 9)), int(numbers.integers(1, 200))
    seed = torch.tensor([rng.as_int64(near(numbers, rng.SEED_LIMIT - 1, 1))])
    draw, stream = torch.tensor([near(numbers, rng.DRAW_LIMIT, 1)]), near(numbers, rng.STREAM_LIMIT, 1)
    dtype = [torch.float32, torch.bfloat16][numbers.integers(2)]
    at = Mask(seed, draw, stream)
    logits = logits_of(numbers, rng.uniform16(rows, cols, seed=seed, draw=draw, stream=stream) & 0x7FFF, dtype)

    levels = rng.threshold_from_logits(logits)
    assert torch.equal(native.threshold_from_logits(logits).int(), levels.int())
    offsets = near(numbers, rng.ROW_LIMIT, rows), near(numbers, rng.COLUMN_LIMIT, cols)
    far = at._replace(row=offsets[0], col=offsets[1])
    assert torch.equal(native.keep_mask(levels, mask=far), reference.keep_mask(levels, mask=far))

    weight = torch.ones_like(logits)
    for here in (at, far):
        kept = reference.keep_mask(levels, mask=here)
        masked = native.masked_weight(weight, logits, mask=here, dtype=dtype)[0] != 0
        assert torch.equal(masked, kept)
        grads = native.weight_grad(weight[None].clone(), weight, logits, mask=here, needs=(True, True))
        assert torch.equal(grads[0] != 0, kept) and grads[1].isfinite().all()

    n, m = PATTERNS[numbers.integers(len(PATTERNS))]
    group = logits[:, : cols // m * m].contiguous()
    if group.numel():
        for here in (at, far._replace(col=offsets[1] // m * m)):
            pattern = native.nm_masked_weight(torch.ones_like(group), group, (n, m), mask=here, dtype=dtype)[0] != 0
            assert torch.equal(pattern, patterns.mask(group, (n, m), here) != 0)

    logits[numbers.integers(rows), numbers.integers(cols)] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        native.masked_weight(weight, logits, mask=at, dtype=dtype)
    with pytest.raises(ValueError, match="NaN"):
        native.threshold_from_logits(logits)


@pytest.fixture(params=_C.instruction_sets())
def instruction_set(request):
    with instructions(request.param):
        yield


@pytest.mark.parametrize("rounds", [100, pytest.param(20_000, marks=pytest.mark.slow)])
def test_native_samples_the_same_bits(instruction_set, rounds):
    numbers = np.random.default_rng(20211021)
    for _ in range(rounds):
        one_round(numbers)
