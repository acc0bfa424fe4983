"""``stochprune bench``, and ``stochprune bench run``."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from torch import Tensor
from torch.utils.benchmark import Timer

from stochprune import backends, functional
from stochprune.cli.options import Device, one_line_ends, split
from stochprune.report import comparison_table, suite_tables, timing_table
from stochprune.runs.device import device_of
from stochprune.seeding import generator

bench = typer.Typer()
GROUPS = ("ops", "layers", "models", "certificates", "memory", "scaling")
"""Groups of the suite, which imports pytest, so it is imported when it runs."""
NARROWEST = 108
"""Columns of its tables: a narrower terminal wraps lines, but no number is cut."""


@bench.callback(invoke_without_command=True)
@one_line_ends
def one_layer(
    context: typer.Context,
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
    The command `run` times many ops and networks, and other ways to write them.
    """
    if context.invoked_subcommand is not None:
        return
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


@bench.command("run")
@one_line_ends
def run_suite(
    groups: Annotated[
        list[str] | None, typer.Argument(help=f"Groups of cases: {', '.join(GROUPS)}; all by default.")
    ] = None,
    only: Annotated[str, typer.Option(help="Run only the cases whose names contain this text.")] = "",
    small: Annotated[
        bool, typer.Option("--small", help="A quick look at tiny sizes, whose times mean nothing.")
    ] = False,
    seconds: Annotated[float, typer.Option(help="Seconds of a case; it takes more if seven rounds need it.")] = 5.0,
    threads: Annotated[int, typer.Option(help="Threads of the processor; 0 means as many as torch has.")] = 0,
    contenders: Annotated[str, typer.Option(help="Contenders of your own: module:attribute of a Python file.")] = "",
    out: Annotated[Path, typer.Option(help="Folder for run folders.")] = Path("runs"),
    device: Device = "",
) -> None:
    """Time ops, layers and networks beside other ways to write them, and count their bytes.

    The contenders of a case take turns in one process. A contender whose outputs, gradients or mask bits are wrong has
    no time, and the exit status is 1 if it is ours. Run the same command again to continue a run that was stopped.
    """
    suite = importlib.import_module("stochprune.bench.run")
    config = suite.SuiteConfig(tuple(groups or GROUPS), only, small, seconds, threads, contenders)
    folder, results = suite.run(config, out=out, device=device)
    console = Console()
    console.width = max(console.width, NARROWEST)
    for table in suite_tables(results):
        console.print(table)
    console.print(f"{folder}/results.json", highlight=False, soft_wrap=True, markup=False)
    if wrong := [row for row in results["rows"] if row["wrong"] and row["contender"].startswith("ours")]:
        raise ValueError(f"{wrong[0]['contender']} of {wrong[0]['op']} is wrong: {wrong[0]['wrong']}")


@bench.command("compare")
@one_line_ends
def compare_runs(
    a: Annotated[Path, typer.Argument(help="A run of `stochprune bench run`: its folder, or its results.json.")],
    b: Annotated[Path, typer.Argument(help="A later run of the same groups.")],
    tolerance: Annotated[
        float, typer.Option(help="How much slower B may be: 0.1 allows 10 per cent.", min=0.0, max=100.0)
    ] = 0.1,
) -> None:
    """Compare the ratios of ours to the dense layer in two runs.

    The exit status is 1 if a ratio of B is larger by more than the tolerance with its whole 95 % interval, or if one of
    our contenders became wrong. What the runs do not share is listed.
    """
    comparison = importlib.import_module("stochprune.bench.compare")
    runs = [comparison.read(path) for path in (a, b)]
    found = comparison.compare(*runs)
    console = Console()
    for name, path, run in zip("AB", (a, b), runs, strict=True):
        console.print(f"{name}: {path}, commit {run.commit!r}", highlight=False, soft_wrap=True, markup=False)
    console.print(comparison_table(found.changes))
    for note in found.notes:
        console.print(note, highlight=False, soft_wrap=True, markup=False)
    if failures := found.failures(tolerance):
        raise ValueError(f"{len(failures)} beyond the tolerance of {tolerance:g}: {'; '.join(failures)}")


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
