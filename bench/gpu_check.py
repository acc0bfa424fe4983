"""The check of a machine with a GPU: its tests, then every contender and route side by side, and a row of the ledger.

    make gpu-check            # or python -m bench.gpu_check --minutes 4

Each route's time stands beside dense, eager, ``torch.compile`` and seed replay of the same run, on the same tensors,
as the median of ``triton.testing.do_bench``. Sizes are run in the order of their interest until the minutes are used
up; the row says which were left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.baselines import CONTENDERS

RESULTS = Path(__file__).parent / "results"
SQUARE, MLP = [(4096, 4096), (8192, 8192)], [(14336, 4096), (4096, 14336)]  # N, K; the latter Llama 3 8B's MLP
TOKENS = [1, 16, 64, 128, 256, 512, 1024, 4096, 16384]
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
        generator = torch.Generator("cuda").manual_seed(0)

        def make(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.bfloat16)

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


def routes(case: Case) -> dict[str, dict[str, float]]:
    """Our times by route: the one chosen, and each that can be forced."""
    from stochprune.kernels.routes import OVERRIDE, ROUTES

    found = {"chosen": case.times("ours")}
    for route in ROUTES:
        os.environ[OVERRIDE] = route
        try:
            found[route] = case.times("ours")
        except (RuntimeError, ValueError) as error:  # a route that does not take this size says so in the row
            found[route] = {"refused": str(error)[:200]}
        finally:
            del os.environ[OVERRIDE]
    return found


def ceilings() -> dict[str, float]:
    """The measured bandwidth of a copy, bytes read and written, and the rate of a large bfloat16 product."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return {
        "copy_tb_per_s": 2 * source.nbytes / median_us(lambda: target.copy_(source)) / 1e6,
        "matmul_tflop_per_s": 2 * 8192**3 / median_us(lambda: a @ b) / 1e6,
    }


def benchmark(minutes: float) -> dict[str, Any]:
    """All sizes that fit into the minutes."""
    deadline, found = time.monotonic() + 60 * minutes, ceilings()
    cases: list[dict[str, Any]] = []
    left_out = []
    for m, n, k in sizes():
        if time.monotonic() > deadline:
            left_out.append([m, n, k])
            continue
        torch._dynamo.reset()
        case = Case(m, n, k)
        row = {"m": m, "n": n, "k": k, "dense": case.times("dense"), "ours": routes(case)}
        row |= {name: case.times(name) for name in MASKED}
        # bytes of weight and logits once, over the time of the forward, as a share of a copy's bandwidth
        best = min(t["forward"] for t in row["ours"].values() if "forward" in t)
        row["share_of_copy"] = 4 * n * k / best / 1e6 / found["copy_tb_per_s"]
        cases.append(row)
        print(_line(row), flush=True)
    return {**found, "cases": cases, "left_out": left_out}


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


def main() -> int:
    """Tests, benchmark, ledger row. Exit status 0 if the tests passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="for the benchmark, after the tests")
    minutes = parser.parse_args().minutes
    if not torch.cuda.is_available():
        print("gpu-check needs an NVIDIA GPU; this machine has none that torch can use", file=sys.stderr)
        return 2
    tests = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "-p", "no:cacheprovider"])
    row = {**versions(), "tests": "passed" if tests.returncode == 0 else "failed", **benchmark(minutes)}
    commit = row["commit"][:10]
    path = RESULTS / f"gpu-{row['gpu'].replace(' ', '-')}-{row['date']}-{commit}.json"
    path.write_text(json.dumps(row, indent=1) + "\n")
    print(f"tests {row['tests']}; wrote {path}")
    return tests.returncode


if __name__ == "__main__":
    sys.exit(main())
