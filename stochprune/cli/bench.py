"""``stochprune bench``."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from torch import Tensor
from torch.utils.benchmark import Timer

from stochprune import backends, functional
from stochprune.cli.options import Device, split
from stochprune.report import timing_table
from stochprune.runs.device import device_of
from stochprune.seeding import generator


def bench(
    *,
    rows: Annotated[int, typer.Option(help="Output features of the layer.", min=1)] = 1024,
    cols: Annotated[int, typer.Option(help="Input features of the layer.", min=1)] = 1024,
    tokens: Annotated[str, typer.Option(help="Numbers of tokens, separated by commas.")] = "1,16,128,512",
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Dtype of the tensors.")] = "float32",
    device: Device = "",
    seconds: Annotated[float, typer.Option(help="Seconds to measure each time.", min=0.01, max=600)] = 0.3,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="First measure the constants that choose the routes on this GPU.")
    ] = False,
) -> None:
    """Time a masked linear layer and a dense one on this machine.

    Prints median times of a forward pass and of a whole step (gradients of weights, logits and input), and the tax: the
    masked layer's time divided by the dense layer's time. On a GPU it also prints the route of each number of tokens.
    """
    console = Console()
    chosen = device_of(device)
    if calibrate:
        try:
            console.print(_triton().calibrate())
        except RuntimeError as error:
            raise ValueError(str(error)) from error
    counts = split("tokens", tokens, int)
    if not counts or min(counts) < 1:
        raise ValueError(f"tokens must be positive integers separated by commas, got {tokens!r}")
    times = {count: _times(count, rows, cols, getattr(torch, dtype), chosen, seconds) for count in counts}
    title = f"[{rows}, {cols}] {dtype} on {chosen.type} ({_backend(chosen, dtype)}), milliseconds"
    console.print(timing_table(title, times))
    if chosen.type == "cuda" and _backend(chosen, dtype) == "triton":
        console.print(_triton().routing_table(rows, cols, chosen), highlight=False)


def _triton() -> Any:
    """The Triton backend with what it alone has; no name that type checkers would look for."""
    return backends.load("triton")


def _backend(device: torch.device, dtype: str) -> str:
    return str(backends.resolve(torch.empty(1, 1, dtype=getattr(torch, dtype), device=device)).NAME)


def _times(
    tokens: int, rows: int, cols: int, dtype: torch.dtype, device: torch.device, seconds: float
) -> tuple[list[float], list[float]]:
    """Return milliseconds of a forward pass and of a step, for the dense layer and for the masked layer."""
    numbers = generator(0, "bench", str(tokens))

    def tensor(*shape: int) -> Tensor:
        return torch.from_numpy(numbers.standard_normal(shape)).to(dtype).to(device).requires_grad_()

    x, weight, logits, bias = tensor(tokens, cols), tensor(rows, cols), tensor(rows, cols), tensor(rows)
    draw = torch.zeros(1, dtype=torch.int64, device=device)

    def dense() -> Tensor:
        return F.linear(x, weight, bias)

    def masked() -> Tensor:
        return functional.masked_linear(x, weight, logits, bias, seed=0, draw=draw.add_(1), stream=0)

    def forward(layer: Callable[[], Tensor]) -> Callable[[], object]:
        return torch.no_grad()(layer)

    def step(layer: Callable[[], Tensor]) -> Callable[[], object]:
        wanted = [x, weight, bias, *([logits] if layer is masked else [])]
        return lambda: torch.autograd.grad(layer().sum(), wanted)

    threads = torch.get_num_threads()
    dense_times, masked_times = (
        [
            1e3
            * statistics.median(
                Timer("run()", globals={"run": make(layer)}, num_threads=threads)
                .blocked_autorange(min_run_time=seconds)
                .times
            )
            for make in (forward, step)
        ]
        for layer in (dense, masked)
    )
    return dense_times, masked_times
