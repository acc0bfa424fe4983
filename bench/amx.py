"""Benchmark of linear layers on AMX: tiles, the masked copy that they replace, and the dense layer.

    python -m bench.amx               # on a processor with AMX; some minutes, all threads of torch
    python -m bench.amx --emulated    # small layers in software, to check this script; its times mean nothing

The contenders take turns. In float32, tiles run under the precision "high", the copy and the dense layer under
"highest", and the dense layer once more under "high". The table shows the milliseconds of the dense layer and the
ratios to it in the median round, beside the goals. The last lines are the estimates of ``stochprune.native.tiles``, as
measured, and for float32 the batches from which tiles are faster than the dense layer.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.suite.ops.linear_ways import ours
from bench.suite.turns import medians, ratios, take_turns
from stochprune import _C, native
from stochprune.native import tiles

SHAPES = ((4096, 4096), (1024, 4096), (512, 512), (256, 256), (128, 128))  # rows and columns of the weight
BATCHES = (1, 16, 64, 128, 256, 512, 1024, 2048)
PARTS = ("forward, cached thresholds", "forward", "step, joint", "step, mask-only")
DTYPES = (torch.bfloat16, torch.float32)
GOALS = {  # of the two large shapes, by dtype, part and batch: tiles / dense
    **{(torch.bfloat16, PARTS[0], batch): goal for batch, goal in ((16, 2.0), (128, 1.1), (512, 1.05))},
    **{(torch.bfloat16, PARTS[2], batch): goal for batch, goal in ((128, 1.5), (512, 1.2))},
    **{(torch.bfloat16, PARTS[3], batch): goal for batch, goal in ((128, 1.25), (512, 1.15))},
    **{(torch.float32, part, batch): 1.0 for part in PARTS for batch in BATCHES if 64 <= batch <= 1024},
}
COPY = "copy"  # the masked copy: ours on the best instruction set without tiles
HIGH = "dense, high"
FULL, REDUCED = "ieee", "tf32"  # what torch calls the precisions "highest" and "high" of products on the CPU


class Result(NamedTuple):
    """Times of one case: the dense layer's in milliseconds, and ratios to it."""

    dtype: torch.dtype
    shape: tuple[int, int]
    batch: int
    part: str
    dense: float
    tiles: float
    copy: float
    high: float  # the dense layer's under "high"; 1 for bfloat16, which the setting does not change


def calls(
    dtype: torch.dtype, shape: tuple[int, int], batch: int, part: str, tiled: str, plain: str
) -> dict[str, Callable[[], object]]:
    """Return the contenders of a case: each runs one forward pass or one step, with float32 logits.

    Args:
        dtype, shape, batch, part: the case.
        tiled, plain: the instruction sets of the two ways to run our layer.
    """
    rows, cols = shape
    generator = torch.Generator().manual_seed(0)
    make = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    step = part.startswith("step")
    x, grad, bias = (make(*size).to(dtype) for size in ((batch, cols), (batch, rows), (rows,)))
    weight = (make(rows, cols) / cols**0.5).to(dtype).requires_grad_(step)
    x.requires_grad_(step)
    logits = make(rows, cols).requires_grad_(step)
    masked = ours(weight if part != "step, mask-only" else weight.detach(), logits, bias)

    def run(
        forward: Callable[[Tensor], Tensor], trained: Iterable[Tensor], instructions: str, precision: str = FULL
    ) -> None:
        _C.use_instruction_set(instructions)
        torch.backends.mkldnn.matmul.fp32_precision = precision  # type: ignore[attr-defined]
        native.cache.enabled = "cached" in part
        y = forward(x)
        if step:
            torch.autograd.grad(y, tuple(trained), grad)

    dense = lambda x: F.linear(x, weight, bias)  # noqa: E731
    ours_trained = (x, logits) if part == "step, mask-only" else (x, weight, logits)
    contenders = {
        "dense": lambda: run(dense, (x, weight), plain),
        "tiles": lambda: run(masked, ours_trained, tiled, REDUCED),
        COPY: lambda: run(masked, ours_trained, plain),
    }
    if dtype is torch.float32:
        contenders[HIGH] = lambda: run(dense, (x, weight), plain, REDUCED)
    return contenders


def measure(
    shapes: Iterable[tuple[int, int]], batches: Iterable[int], rounds: int, tiled: str, plain: str
) -> list[Result]:
    """Return the times of all cases; ``tiled`` and ``plain`` as in :func:`calls`."""
    limits, before = (tiles.LARGEST_BATCH, tiles.SMALLEST_LAYER), _C.instruction_set()
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    precision = matmul.fp32_precision
    tiles.LARGEST_BATCH, tiles.SMALLEST_LAYER = 1 << 30, 1
    try:
        results = []
        for case in itertools.product(DTYPES, shapes, batches, PARTS):
            times = take_turns(calls(*case, tiled, plain), rounds, time.perf_counter)
            ratio = ratios(times, "dense")
            dense = medians(times, 1e3)["dense"]
            results.append(Result(*case, dense, ratio["tiles"], ratio[COPY], ratio.get(HIGH, 1.0)))
        return results
    finally:
        tiles.LARGEST_BATCH, tiles.SMALLEST_LAYER = limits
        _C.use_instruction_set(before)
        matmul.fp32_precision = precision
        native.cache.enabled = False
        native.cache.clear()


def limits(results: list[Result]) -> tuple[int, int]:
    """Return the largest batch and the smallest number of weights at which tiles win every step.

    The batch is that of the largest layer, up to which tiles always win; the layer is the smallest that wins at the
    median of the batches up to it. 0 if tiles never win.
    """
    steps = [r for r in results if r.part.startswith("step")]
    wins = lambda rows: all(r.tiles < r.copy for r in rows)  # noqa: E731
    sizes = sorted({r.shape[0] * r.shape[1] for r in steps})
    of_size = {size: [r for r in steps if r.shape[0] * r.shape[1] == size] for size in sizes}
    batches = sorted({r.batch for r in steps})
    largest = [b for b in batches if wins(r for r in of_size[sizes[-1]] if r.batch <= b)]
    if not largest:
        return 0, 0
    median = largest[len(largest) // 2]
    return largest[-1], next(size for size in sizes if wins(r for r in of_size[size] if r.batch == median))


def faster_from(results: list[Result], part: str) -> int:
    """Return the smallest batch from which tiles are faster than the dense layer, at both precisions and all shapes.

    0 if they are not at the largest batch. Batches above the largest that is computed on tiles do not count.
    """
    found = 0
    of_part = [r for r in results if r.part == part and r.batch <= tiles.LARGEST_BATCH]
    for batch in sorted({r.batch for r in of_part}, reverse=True):
        if any(r.tiles >= min(1.0, r.high) for r in of_part if r.batch == batch):
            break
        found = batch
    return found


def show(results: list[Result]) -> None:
    """Print the table, the limits of each dtype, and where float32 pays."""
    table = Table(
        "dtype", "weight", "batch", "part", "dense, ms", "tiles / dense", "goal", "copy / dense", "dense, high / dense"
    )
    name = lambda dtype: str(dtype).removeprefix("torch.")  # noqa: E731
    for r in results:
        goal = GOALS.get((r.dtype, r.part, r.batch)) if r.shape in SHAPES[:2] else None
        cells = (f"{r.shape[0]} x {r.shape[1]}", str(r.batch), r.part, f"{r.dense:.2f}", f"{r.tiles:.2f}")
        high = f"{r.high:.2f}" if r.dtype is torch.float32 else ""
        table.add_row(name(r.dtype), *cells, "" if goal is None else f"{goal:.2f}", f"{r.copy:.2f}", high)
    Console().print(table)
    for dtype in DTYPES:
        batch, weights = limits([r for r in results if r.dtype is dtype])
        print(f"{name(dtype)}: LARGEST_BATCH = {batch}, SMALLEST_LAYER = {weights}")
    large = [r for r in results if r.dtype is torch.float32 and r.shape in SHAPES[:2]]
    for part in PARTS if large else ():
        print(f"float32, {part}: faster than the dense layer from batch {faster_from(large, part) or 'none'} on")


def main() -> None:
    """Measure and print; without AMX, end with a message."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--emulated", action="store_true", help="small layers on emulated tiles, to check this script")
    known = _C.instruction_sets()
    if parser.parse_args().emulated:
        show(measure(((64, 64), (32, 40)), (3, 8), 2, "amx-emulated", known[-1]))
    elif "amx" in known:
        show(measure(SHAPES, BATCHES, 9, "amx", known[known.index("amx") + 1]))
    else:
        raise SystemExit(f"this processor has no AMX; it runs {', '.join(known)}")


if __name__ == "__main__":
    main()
