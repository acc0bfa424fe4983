"""Compile the CUDA C++ kernels as the build does, without a GPU, and write a table of the results.

    python -m bench.cuda_table            # writes bench/results/cuda_table.md
    python -m bench.cuda_table --check    # exit status 1 on a broken gate

The gates are: no spills, no local memory, and 16-byte loads and stores.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "bench" / "results" / "cuda_table.md"
TRITON = importlib.util.find_spec("triton")
CUOBJDUMP = Path(TRITON.origin).parent / "backends/nvidia/bin/cuobjdump" if TRITON and TRITON.origin else "cuobjdump"
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
ESTIMATORS = ("straight_through", "concrete", "straight_through_concrete", "expected", "hard_concrete")
# The minimum number of 16-byte loads and stores of eight columns. Each matrix needs four: two in float32, one in
# bfloat16 and one in float16.
WIDE = {"KeepMask": (1, 0), "FormThresholds": (4, 1), "MaskWeight": (8, 4), "WeightGrad": (20, 8)}


class Row(NamedTuple):
    """The result of compiling one kernel."""

    arch: str
    kernel: str
    registers: int
    stack: int  # bytes a thread
    shared: int  # bytes
    load: int  # 16-byte loads
    store: int

    def faults(self) -> list[str]:
        """Return the gates that this row breaks."""
        op = self.kernel.split()[0]
        broken = [f"{self.stack} bytes of local memory"] if self.stack else []
        for name, found, wanted in (("loads", self.load, WIDE[op][0]), ("stores", self.store, WIDE[op][1])):
            if found < wanted:
                broken.append(f"{found} of {wanted} 16-byte {name}")
        return broken


def rows(arch: str) -> list[Row]:
    """Compile the kernels of csrc/cuda for one architecture, and return a row for each."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        source = ROOT / "csrc" / "cuda" / "engine.cu"
        options = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", f"-arch={arch}", "-cubin"]
        subprocess.run(["nvcc", *options, source, "-o", file.name], check=True)
        usage, sass = (
            subprocess.run([CUOBJDUMP, what, file.name], capture_output=True, text=True, check=True).stdout
            for what in ("-res-usage", "-sass")
        )
    code = dict(re.findall(r"Function : (\S+)\n(.*?)(?=\n\s*Function : |\Z)", sass, re.DOTALL))
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    return sorted(
        Row(
            arch,
            _name(symbol),
            *map(int, numbers),
            *(len(re.findall(rf"{op}\.E\.128", code[symbol])) for op in ("LDG", "STG")),
        )
        for symbol, *numbers in found
    )


def _name(symbol: str) -> str:
    op = re.search(r"(KeepMask|FormThresholds|MaskWeight|WeightGrad)", symbol)
    estimator = re.search(r"EstimatorE(\d)", symbol)
    assert op is not None, symbol
    return op[1] + (f" {ESTIMATORS[int(estimator[1])]}" if estimator else "")


def markdown(table: list[Row]) -> str:
    """Return the rows as a page with one table."""
    lines = [
        "# Compiled CUDA C++ kernels",
        "",
        "The kernels were compiled by nvcc 13.0, and the tests run them on the host, but **not yet on a GPU**. Made by "
        "`python -m bench.cuda_table`.",
        "",
        "| sm | kernel | registers | local bytes | shared bytes | 16-byte loads | 16-byte stores | gates |",
        "|---|---|---|---|---|---|---|---|",
        *("| " + " | ".join(map(str, (*row, "; ".join(row.faults()) or "ok"))) + " |" for row in table),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="print instead of writing; fail on a broken gate")
    check = parser.parse_args().check
    table = [row for arch in ARCHITECTURES for row in rows(arch)]
    if check:
        print(markdown(table))
        return int(any(row.faults() for row in table))
    OUTPUT.write_text(markdown(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
