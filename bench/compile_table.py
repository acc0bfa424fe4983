"""Compile every Triton kernel in its real configurations, without a GPU, and write a table of the results.

    python -m bench.compile_table                  # all cases; writes bench/results/compile_table.md
    python -m bench.compile_table --quick --check  # the everyday subset; exit status 1 on a broken gate

The ops run on ``meta`` tensors, and their launches are recorded but not made. So each kernel is compiled with the
specialisation that a GPU would need. The gates are:

- no instruction overwrites the registers of a matrix instruction's left operand too early (:mod:`bench.sass`);
- no registers are spilled, or few if rows are not a multiple of 16 or the matrix is a shard;
- another stream, temperature or number of tokens needs no new compilation;
- a weight takes few instructions in the main loop (sm_90);
- a multiprocessor runs as many programs at a time as the tile says;
- if the main loop samples the mask, the tensor cores read the masked operand from registers (sm_90) or from tensor
  memory (sm_100, forward only);
- loads and stores have 16 bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import triton

from stochprune.kernels.matmul import RESERVED
from stochprune.kernels.split_sum import split

from . import sass
from .kernel_cases import Case, cases
from .launches import SHARED, SPILLED, Specialisation, content, recorded

OUTPUT = Path(__file__).parent / "results" / "compile_table.md"
KNOWN = Path(".benchmarks/compile_table.jsonl")
ARCHITECTURES = (80, 90, 100)


class Row(NamedTuple):
    """The result of compiling one kernel."""

    case: Case
    arch: int
    registers: int
    stack: int  # bytes a thread
    shared: int  # bytes
    programs: int  # that a multiprocessor runs at a time
    claimed: int  # the same, as the host code of the kernel assumes
    matrix: str  # tensor-core instruction, how many of them, and the memory of the masked operand
    instructions: float  # of the main loop, per weight; 0 without tensor cores
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
        # On sm_100, Triton gives a thread of four warps 128 registers; some products need two or four more. The tiles
        # of one_pass are those of sm_90.
        few = 0 if self.arch < 100 else SPILLED if self.case.op.startswith("one_pass") else 16
        if self.stack > (few if self.case.aligned and not any(self.case.first) else SPILLED):
            broken.append(f"spills {self.stack} bytes")
        if self.shared > SHARED[self.arch]:
            broken.append("too much shared memory")
        if self.programs < self.claimed:
            broken.append(f"{self.programs} programs a multiprocessor, not {self.claimed}")
        if not self.case.aligned:
            return broken  # wide loads are impossible, and other tiles are used
        op = self.case.op.split(",")[0]
        in_loop = op in ("forward", "dx", "convolution")
        hard = self.case.estimator == "straight_through"
        if hard and self.arch == 90 and self.instructions > MOST.get((self.case.op, self.case.dtypes), math.inf):
            broken.append(f"{self.instructions} instructions a weight")
        if in_loop and self.arch == 90 and "from registers" not in self.matrix:
            broken.append("masked operand not in registers")
        if in_loop and op != "dx" and self.arch == 100 and "from tensor memory" not in self.matrix:
            broken.append("masked operand not in tensor memory")
        if self.load < 128 or (self.store < 128 and op not in NARROW):
            broken.append(f"loads {self.load} bits and stores {self.store} bits at a time")
        if not self.case.tokens and self.narrow > SCALARS:
            broken.append(f"{self.narrow} narrow loads")
        return broken


NARROW = ("bernoulli_kl", "spike_and_slab_kl", "convolution")
"""Ops with a small result, or with one whose neighbours in memory are unknown: its stores may be narrow."""
SCALARS = 13
"""Maximum number of narrow loads of a memory-bound kernel: seed, draw and the layer's row of the table."""


MOST = {
    ("forward", "bf16 bf16"): 18.0,
    ("forward", "bf16 fp32"): 19.0,
    ("forward, thresholds", "bf16 bf16"): 9.0,
    ("forward, thresholds", "bf16 fp32"): 10.5,
    ("convolution", "bf16 bf16"): 45.0,  # 43 to 45 in the narrow tiles of Triton 3.6
    ("convolution", "bf16 fp32"): 45.0,
    ("convolution, thresholds", "bf16 bf16"): 28.0,
    ("convolution, thresholds", "bf16 fp32"): 28.0,
    ("one_pass", "bf16 bf16"): 36.0,
    ("one_pass", "bf16 fp32"): 36.0,
}
"""Most instructions a weight in the main loop on sm_90; only those of hard masks are compared."""


def specialise(case: Case, arch: int) -> Specialisation:
    """Return the specialisation that Triton would compile for a case's first launch."""
    return launch(case, arch)[0]


def launch(case: Case, arch: int) -> tuple[Specialisation, int]:
    """Return the specialisation of a case's first launch, and how many programs share a multiprocessor by its tile."""
    row, resident = 9 if arch >= 90 else 8, 1

    def observed(steps: int, programs: int, claimed: int, *rest: Any) -> tuple[int, int]:
        nonlocal resident
        resident = claimed
        return split(steps, programs, claimed, *rest)

    with (
        recorded(arch) as launches,
        mock.patch("stochprune.kernels.matmul.capability", lambda device: row),
        mock.patch("stochprune.kernels.one_pass.capability", lambda device: row),
        mock.patch("stochprune.kernels.masked_matmul.split", observed),
        mock.patch("stochprune.kernels.masked_conv.split", observed),
        mock.patch("stochprune.kernels.one_pass.split", observed),
    ):
        case.run()
    return launches[0].specialisation, resident


def compile_case(case: Case, arch: int) -> Row:
    """Compile a case's kernel for sm_``arch`` and read its resources and its machine code."""
    return compiled(case, arch, *launch(case, arch))


def compiled(case: Case, arch: int, specialisation: Specialisation, claimed: int) -> Row:
    """Return the row of a case, of whose first launch :func:`launch` returned the rest."""
    other = case._replace(tokens=case.tokens and case.tokens - 1, stream=1, temperature=0.3)
    recompiles = specialise(other, arch).key != specialisation.key
    code, shared = specialisation.compile(arch)
    instructions, constants, warps = sass.parse(code.sass), specialisation.named, specialisation.options["num_warps"]
    loads, stores = widths("LDG|LDGSTS", code.sass), widths("STG", code.sass)
    return Row(
        case=case,
        arch=arch,
        registers=code.registers,
        stack=code.stack,
        shared=shared,
        programs=resident(code.registers, warps, shared, arch),
        claimed=claimed,
        matrix=matrix_instructions(code.sass),
        instructions=round(len(sass.main_loop(instructions)) * 32 * warps / weights(constants), 1),
        races=len(sass.hazards(instructions)),
        load=max(loads),
        store=max(stores),
        narrow=sum(width < 128 for width in loads),
        recompiles=recompiles,
    )


def weights(constants: dict[str, Any]) -> int:
    """Return the number of weights in a tile of a kernel's main loop."""
    if "STEP" in constants:
        return constants["OUT"] * constants["STEP"]
    return constants.get("ROWS", 1) * constants.get("COLS", 64)


def resident(registers: int, warps: int, shared: int, arch: int) -> int:
    """Return how many programs a multiprocessor runs at a time, by registers, warps and shared memory."""
    registers_a_warp = -(-32 * registers // 256) * 256
    most = min((65536 // registers_a_warp) // warps, WARPS[arch] // warps)
    return min(most, (SHARED[arch] + RESERVED) // (shared + RESERVED))


WARPS = {80: 48, 90: 64, 100: 64}
"""Warps that a multiprocessor runs at a time; for 80 those of sm_86 and sm_89."""


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
    "programs",
    "tensor cores",
    "instructions",
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
            *(value for name, value in row._asdict().items() if name not in ("case", "claimed", "recompiles")),
            "; ".join(row.faults()) or "ok",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def table(jobs: list[tuple[Case, int]], known: Path, processes: int) -> list[Row]:
    """Return the rows of all pairs of a case and an architecture; those that the file lacks are appended to it."""
    lines = known.read_text().splitlines() if known.exists() else []
    found = {key: values for key, values in map(json.loads, lines)}
    known.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with ProcessPoolExecutor(processes) as pool, known.open("a") as file:
        for (case, arch), (key, values) in zip(jobs, pool.map(partial(values_of, found), jobs), strict=True):
            if key not in found:
                print(json.dumps([key, values]), file=file, flush=True)
            rows.append(Row(case, arch, *values))
    return rows


def values_of(found: dict[str, list[Any]], job: tuple[Case, int]) -> tuple[str, list[Any]]:
    """Return the key of a row, which names its compiled code, and its values after the case and the architecture."""
    case, arch = job
    specialisation, claimed = launch(case, arch)
    key = f"{content(specialisation)} {arch} {claimed} {case}"
    return key, found[key] if key in found else list(compiled(case, arch, specialisation, claimed)[2:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the everyday subset")
    parser.add_argument("--check", action="store_true", help="print instead of writing; fail on a broken gate")
    parser.add_argument("--known", type=Path, default=KNOWN, help="results of earlier runs")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    chosen = [case for case in cases() if case.quick or not options.quick]
    # The gates of matrix instructions differ by architecture; a quick run compiles the other kernels for sm_90 alone.
    jobs = [
        (case, arch)
        for case in chosen
        for arch in (ARCHITECTURES if case.tokens or not options.quick else (90,))
        if arch >= case.since
    ]
    rows = table(jobs, options.known, options.processes)
    if options.check:
        print(markdown(rows))
        return int(any(row.faults() for row in rows))
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
