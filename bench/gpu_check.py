"""The check of a machine with a GPU: its tests, then every contender and route side by side, and a row of the ledger.

    make gpu-check            # or python -m bench.gpu_check --minutes 8

The tests run in as many processes as help; where compute-sanitizer is there, it watches each kernel on a small odd
shape. The constants that choose the routes are measured first (see kernels/routes.py). Each route's time stands beside
dense, eager, ``torch.compile`` and seed replay of the same run, on the same tensors, as the median of
``triton.testing.do_bench``. Sizes are run in the order of their interest until the minutes are used up, those of the
tests included; the row says which were left out. The Monte Carlo draws of certificates come last (see bench/draws.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import draws
from bench.baselines import CONTENDERS

RESULTS = Path(__file__).parent / "results"
DEVICE = "cuda"
SQUARE, MLP = [(4096, 4096), (8192, 8192)], [(14336, 4096), (4096, 14336)]  # N, K; the latter Llama 3 8B's MLP
TOKENS = [1, 16, 64, 128, 256, 512, 1024, 4096, 16384]
MARGIN = 40.0  # seconds: the last size starts so long before the end, and a certificate's draws come after it
MASKED = [name for name in CONTENDERS if name not in ("dense", "ours")]


def sizes() -> Iterator[tuple[int, int, int]]:
    """Tokens, N and K: every number of tokens at the first width, then the other widths."""
    for n, k in SQUARE + MLP:
        for m in TOKENS:
            yield m, n, k


def median_us(run: Callable[[], object]) -> float:
    """Median time of ``run`` in microseconds."""
    from triton.testing import do_bench

    return 1e3 * do_bench(run, warmup=10, rep=40, return_mode="median")


class Case:
    """One size: its tensors in bfloat16, and what is timed on them."""

    def __init__(self, m: int, n: int, k: int) -> None:
        generator = torch.Generator(DEVICE).manual_seed(0)

        def make(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=DEVICE, dtype=torch.bfloat16)

        self.x, self.grad = make(m, k).requires_grad_(), make(m, n)
        self.weight = (make(n, k) / k**0.5).requires_grad_()
        self.logits, self.bias = make(n, k).requires_grad_(), make(n).requires_grad_()

    def times(self, contender: str) -> dict[str, float]:
        """Microseconds of a forward and of a whole step."""
        layer = CONTENDERS[contender](self.weight, self.logits, self.bias)
        wanted = [self.x, self.weight, self.bias, *([] if contender == "dense" else [self.logits])]

        def forward() -> Tensor:
            with torch.no_grad():
                return layer(self.x)

        def step() -> tuple[Tensor, ...]:
            return torch.autograd.grad(layer(self.x), wanted, self.grad)

        return {"forward": median_us(forward), "step": median_us(step)}


def ways() -> dict[str, tuple[str, str]]:
    """Our own ways through a layer by name: the variable that forces each, and its value."""
    from stochprune import backends
    from stochprune.kernels.routes import OVERRIDE, ROUTES

    found = {route: (OVERRIDE, route) for route in ROUTES}
    try:
        backends.load("cuda")
    except RuntimeError:  # built without nvcc
        return found
    return {**found, "cuda": (backends.OVERRIDE, "cuda")}


@contextlib.contextmanager
def forced(variable: str, value: str) -> Iterator[None]:
    """Inside, the environment holds the variable."""
    os.environ[variable] = value
    try:
        yield
    finally:
        del os.environ[variable]


def ours(case: Case) -> dict[str, dict[str, float]]:
    """Our times: of the route that is chosen, and of each that can be forced."""
    found = {"chosen": case.times("ours")}
    for name, way in ways().items():
        with forced(*way):
            found[name] = case.times("ours")
    return found


def exercise() -> None:
    """Every way once, forward and backward, on a small odd shape: for a checker of memory accesses."""
    for way in ways().values():
        with forced(*way):
            case = Case(33, 70, 130)
            layer = CONTENDERS["ours"](case.weight, case.logits, case.bias)
            layer(case.x).backward(case.grad)
    torch.cuda.synchronize()


def sanitize() -> str:
    """What compute-sanitizer says of :func:`exercise`."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return "not there"
    command = [
        tool,
        "--tool",
        "memcheck",
        "--error-exitcode",
        "9",
        sys.executable,
        "-m",
        "bench.gpu_check",
        "--exercise",
    ]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=90)
    except subprocess.TimeoutExpired:
        return "took more than 90 seconds"
    said = run.stdout.strip().splitlines()
    return "clean" if run.returncode == 0 else f"status {run.returncode}: {' / '.join(said[-3:])}"


def ceilings() -> dict[str, float]:
    """The measured bandwidth of a copy, bytes read and written, and the rate of a large bfloat16 product."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return {
        "copy_tb_per_s": 2 * source.nbytes / median_us(lambda: target.copy_(source)) / 1e6,
        "matmul_tflop_per_s": 2 * 8192**3 / median_us(lambda: a @ b) / 1e6,
    }


def benchmark(deadline: float) -> dict[str, Any]:
    """All sizes that can be started before the deadline, in seconds of the monotonic clock."""
    from stochprune.kernels import calibrate

    found: dict[str, Any] = {**ceilings(), "constants": calibrate()._asdict()}
    cases: list[dict[str, Any]] = []
    left_out = []
    for m, n, k in sizes():
        if time.monotonic() > deadline:
            left_out.append([m, n, k])
            continue
        torch._dynamo.reset()
        case = Case(m, n, k)
        row = {"m": m, "n": n, "k": k, "dense": case.times("dense"), "ours": ours(case)}
        row |= {name: case.times(name) for name in MASKED}
        # bytes of weight and logits once, over the time of the forward, as a share of a copy's bandwidth
        best = min(times["forward"] for times in row["ours"].values())
        row["share_of_copy"] = 4 * n * k / best / 1e6 / found["copy_tb_per_s"]
        cases.append(row)
        print(_line(row), flush=True)
    return {**found, "cases": cases, "left_out": left_out, "draws": draws.rows(5, DEVICE)}


def _line(row: dict[str, Any]) -> str:
    ours, dense = row["ours"]["chosen"], row["dense"]

    def part(name: str) -> str:
        time, against = ours[name], row["compile"][name]
        return f"{name} {time:9.1f} us ({time / dense[name]:5.2f} dense, {against / time:5.2f}x compile)"

    size = f"M {row['m']:>6} N {row['n']:>6} K {row['k']:>6}"
    return f"{size}   {part('forward')}, {row['share_of_copy']:4.0%} of copy   {part('step')}"


def versions() -> dict[str, str]:
    import triton

    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=RESULTS).stdout.strip()
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": sys.version.split()[0],
        "commit": commit or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


TESTS = ["tests/gpu", "tests/test_backend_contract.py", "tests/kernels", "--deselect", "tests/kernels/test_compile.py"]


def main() -> int:
    """Tests, benchmark, ledger row. Exit status 0 if the tests passed and the sanitizer found nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--exercise", action="store_true", help="only run each kernel once")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu-check needs an NVIDIA GPU; this machine has none that torch can use", file=sys.stderr)
        return 2
    if options.exercise:
        exercise()
        return 0
    start = time.monotonic()
    # Compiling the kernels is most of the tests' time, and it is the processor's.
    workers = ["-n", str(min(12, os.cpu_count() or 1))]
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *workers, "-p", "no:cacheprovider", *TESTS]
    )
    checks = {"tests": "passed" if tests.returncode == 0 else "failed", "sanitizer": sanitize()}
    checks["minutes_of_checks"] = round((time.monotonic() - start) / 60, 1)
    row = {**versions(), **checks, **benchmark(start + 60 * options.minutes - MARGIN)}
    path = RESULTS / f"gpu-{row['gpu'].replace(' ', '-')}-{row['date']}-{row['commit'][:10]}.json"
    path.write_text(json.dumps(row, indent=1) + "\n")
    print(f"tests {row['tests']}, sanitizer {row['sanitizer']}; wrote {path}")
    return int(tests.returncode != 0 or row["sanitizer"].startswith("status"))


if __name__ == "__main__":
    sys.exit(main())
