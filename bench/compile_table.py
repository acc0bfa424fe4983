"""Compile every Triton kernel in its real configurations, without a GPU, and write a table of the results.

    python -m bench.compile_table                  # all cases; writes bench/results/compile_table.md
    python -m bench.compile_table --quick --check  # the everyday subset; exit status 1 on a broken gate

The ops run on ``meta`` tensors, and their launches are recorded but not made. So each kernel is compiled with the
specialisation that a GPU would need. The gates are:

- no instruction overwrites the registers of a matrix instruction's left operand too early (:mod:`bench.sass`);
- no registers are spilled, or few if rows are not a multiple of 16 or the matrix is a shard;
- another stream, temperature or number of tokens needs no new compilation;
- if the main loop samples the mask, the tensor cores read the masked operand from registers (sm_90) or from tensor
  memory (sm_100, forward only);
- loads and stores have 16 bytes.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import triton

from . import sass
from .kernel_cases import Case, cases
from .launches import SHARED, SPILLED, Specialisation, recorded

OUTPUT = Path(__file__).parent / "results" / "compile_table.md"
ARCHITECTURES = (80, 90, 100)


class Row(NamedTuple):
    """The result of compiling one kernel."""

    case: Case
    arch: int
    registers: int
    stack: int  # bytes a thread
    shared: int  # bytes
    matrix: str  # tensor-core instruction, how many of them, and the memory of the masked operand
    races: int  # number of writes to a left operand that a matrix instruction still reads
    load: int  # widest global load, bits
    store: int
    narrow: int  # loads of less than 16 bytes
    recompiles: bool  # True if another stream, temperature or number of tokens needs a new compilation

    def faults(self) -> list[str]:
        """Return the gates that this row breaks."""
        broken = ["recompiles"] if self.recompiles else []
        if self.races:
            broken.append(f"{self.races} races")
        # The main loop keeps the first row and group of a shard in registers. On sm_100, Triton 3.6 spills 8 bytes for
        # them in the product of 16 tokens; Triton 3.7 spills nothing.
        if self.stack > (0 if self.case.aligned and not any(self.case.first) else SPILLED):
            broken.append(f"spills {self.stack} bytes")
        if self.shared > SHARED[self.arch]:
            broken.append("too much shared memory")
        if not self.case.aligned:
            return broken  # wide loads are impossible, and other tiles are used
        convolution = self.case.op.startswith("convolution")
        in_loop = convolution or self.case.op in ("forward", "dx")
        if in_loop and self.arch == 90 and "from registers" not in self.matrix:
            broken.append("masked operand not in registers")
        if in_loop and self.case.op != "dx" and self.arch == 100 and "from tensor memory" not in self.matrix:
            broken.append("masked operand not in tensor memory")
        if self.load < 128 or (self.store < 128 and self.case.op not in SMALL and not convolution):
            broken.append(f"loads {self.load} bits and stores {self.store} bits at a time")
        if not self.case.tokens and self.narrow > SCALARS:
            broken.append(f"{self.narrow} narrow loads")
        return broken


SMALL = ("mask_bits", "bernoulli_kl", "spike_and_slab_kl")
"""Ops with a small result: the width of its stores does not matter."""
SCALARS = 13
"""Maximum number of narrow loads of a memory-bound kernel: seed, draw and the layer's row of the table."""


def specialise(case: Case, arch: int) -> Specialisation:
    """Return the specialisation that Triton would compile for a case's first launch."""
    row = 9 if arch >= 90 else 8
    with (
        recorded(arch) as launches,
        mock.patch("stochprune.kernels.matmul.capability", lambda device: row),
        mock.patch("stochprune.kernels.one_pass.capability", lambda device: row),
    ):
        case.run()
    return launches[0].specialisation


def compile_case(case: Case, arch: int) -> Row:
    """Compile a case's kernel for sm_``arch`` and read its resources and its machine code."""
    specialisation = specialise(case, arch)
    other = case._replace(tokens=case.tokens and case.tokens - 1, stream=1, temperature=0.3)
    recompiles = specialise(other, arch).key != specialisation.key
    code, shared = specialisation.compile(arch)
    loads, stores = widths("LDG|LDGSTS", code.sass), widths("STG", code.sass)
    narrow = sum(width < 128 for width in loads)
    matrix, races = matrix_instructions(code.sass), len(sass.hazards(sass.parse(code.sass)))
    return Row(
        case, arch, code.registers, code.stack, shared, matrix, races, max(loads), max(stores), narrow, recompiles
    )


def widths(operations: str, sass: str) -> list[int]:
    """Return the number of bits that each memory instruction moves for a thread."""
    return [int(bits or 32) for bits in re.findall(rf"\b(?:{operations})\.E(?:\.[A-Z]\w*)*(?:\.(64|128))?\b", sass)]


def matrix_instructions(sass: str) -> str:
    """Return the tensor-core instructions of a kernel, and the memory of the first one's left operand."""
    found = re.findall(r"\b(HGMMA|UTCHMMA|HMMA)[.\w]*\s+([^;]*);", sass)
    if not found:
        return ""
    name, operands = found[0]
    if name == "HGMMA":  # accumulator, left operand, ...
        origin = " from registers" if re.match(r"R\d+, R\d+", operands) else " from shared memory"
    elif name == "UTCHMMA":
        origin = " from tensor memory" if operands.startswith("tmem") else " from shared memory"
    else:
        origin = ""
    return f"{name} x{len(found)}{origin}"


COLUMNS = [
    "op",
    "N x K",
    "first",
    "dtypes",
    "tokens",
    "estimator",
    "sm",
    "registers",
    "stack",
    "shared",
    "tensor cores",
    "races",
    "load",
    "store",
    "narrow loads",
    "gates",
]


def markdown(rows: list[Row]) -> str:
    """Return the rows as a page with one table."""
    lines = [
        "# Compiled Triton kernels",
        "",
        f"The kernels were compiled and interpreted, but **not yet run on a GPU**. Triton {triton.__version__}. The "
        "dtypes are those of x and of weights and logits. Made by `python -m bench.compile_table`.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    for row in rows:
        c = row.case
        cells = (
            c.op,
            "{} x {}".format(*c.shape),
            "{}, {}".format(*c.first) if any(c.first) else "",
            c.dtypes,
            c.tokens or "",
            c.estimator,
            *row[1:-1],
            "; ".join(row.faults()) or "ok",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the everyday subset")
    parser.add_argument("--check", action="store_true", help="print instead of writing; fail on a broken gate")
    options = parser.parse_args()
    chosen = [case for case in cases() if case.quick or not options.quick]
    jobs = [(case, arch) for case in chosen for arch in ARCHITECTURES if arch >= case.since]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(compile_case, *zip(*jobs, strict=True)))
    if options.check:
        print(markdown(rows))
        return int(any(row.faults() for row in rows))
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
