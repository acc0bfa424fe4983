"""Compile every Triton kernel in its real configurations, without a GPU, and write a table of the results.

    python -m bench.compile_table                  # all cases; writes bench/results/compile_table.md
    python -m bench.compile_table --quick --check  # the everyday subset; exit status 1 on a broken gate

The ops run on ``meta`` tensors, and their launches are recorded instead of made. So each kernel is compiled with the
specialisation that a GPU would need. Gates: no race of a matrix instruction with the registers of its left operand
(:mod:`bench.sass`); no spills, or few if rows are not a multiple of 16; another stream, temperature or number of tokens
compiles nothing again; if the mask is sampled in the main loop, the masked operand reaches the tensor cores from
registers (sm_90) or tensor memory (sm_100, forward only); 16-byte loads and stores.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor

from stochprune.kernels.gaussian import gaussian_grad, gaussian_weight
from stochprune.kernels.keep_mask import keep_mask
from stochprune.kernels.kl import bernoulli_kl, bernoulli_kl_backward, gaussian_kl, gaussian_kl_backward
from stochprune.kernels.mask_bits import mask_bits
from stochprune.kernels.masked_matmul import masked_matmul
from stochprune.kernels.moments import moments, moments_grad
from stochprune.kernels.multi_prepass import masked_weights
from stochprune.kernels.multi_weight_grad import weight_grads
from stochprune.kernels.nm import nm_masked_weight, nm_weight_grad
from stochprune.kernels.one_pass import one_pass
from stochprune.kernels.prepass import mask_weight
from stochprune.kernels.threshold import threshold_from_logits
from stochprune.kernels.weight_grad import weight_grad
from stochprune.kernels.weight_grad_matmul import weight_grad_matmul
from stochprune.products import Divergence, Mask

from . import sass
from .launches import SHARED, SPILLED, Specialisation, recorded

OUTPUT = Path(__file__).parent / "results" / "compile_table.md"
ARCHITECTURES = (80, 90, 100)
N = K = 4096
ODD = (77, 333)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "tf32": torch.float32}


class Case(NamedTuple):
    """One op at one configuration: ``dtypes`` are those of x and of weight and logits, space separated."""

    op: str
    dtypes: str
    tokens: int = 0
    estimator: str = "straight_through"
    quick: bool = False
    since: int = 80  # the first architecture that takes this path
    stream: int = 12345
    temperature: float = 1.0
    shape: tuple[int, int] = (N, K)

    @property
    def aligned(self) -> bool:
        """Return True if rows of weights start at multiples of 16 elements, as Triton must know for wide loads."""
        return self.shape[0] % 16 == self.shape[1] % 16 == 0

    def run(self) -> None:
        """Call the op on tensors without storage."""
        torch.backends.cuda.matmul.fp32_precision = "tf32" if self.dtypes.startswith("tf32") else "ieee"
        x_dtype, w_dtype = (DTYPES[name] for name in self.dtypes.split())
        n, k = self.shape
        weight, logits = (meta(n, k, dtype=w_dtype) for _ in range(2))
        x, grad = meta(1, self.tokens, k, dtype=x_dtype), meta(1, self.tokens, n, dtype=x_dtype)
        dweight, dlogits = torch.empty_like(weight), torch.empty_like(logits)
        mask = Mask(
            meta(1, dtype=torch.int64), meta(1, dtype=torch.int64), self.stream, self.estimator, self.temperature
        )
        bits = meta(1, n, -(-k // 32), dtype=torch.int32)
        one = meta(dtype=torch.float64)
        many = mask.seed, mask.draw, [1], self.estimator, self.temperature
        nm = tuple(map(int, self.estimator.split(":"))) if ":" in self.estimator else (2, 4)
        kl = Divergence(torch.empty_like(logits), meta(dtype=torch.float64))
        calls: dict[str, Callable[[], object]] = {
            "keep_mask": lambda: keep_mask(meta(n, k, dtype=torch.uint16), mask.seed, mask.draw, self.stream, 0, 0),
            "threshold": lambda: threshold_from_logits(logits),
            "prepass": lambda: mask_weight(weight, logits, mask, x_dtype),
            "multi_prepass": lambda: masked_weights([weight], [logits], *many, x_dtype),
            "multi_weight_grad": lambda: weight_grads(
                [meta(n, k, dtype=x_dtype)], [weight], [logits], *many, True, True
            ),
            "mask_bits": lambda: mask_bits(logits, mask),
            "bernoulli_kl": lambda: bernoulli_kl(logits, weight),
            "bernoulli_kl_grad": lambda: bernoulli_kl_backward(one, logits, weight, True, True),
            "spike_and_slab_kl": lambda: gaussian_kl(*[weight] * 4, logits),
            "spike_and_slab_kl_grad": lambda: gaussian_kl_backward(one, *[weight] * 4, logits, [True] * 5),
            "weight_grad": lambda: weight_grad(meta(n, k, dtype=w_dtype), weight, logits, mask, dweight, dlogits),
            "weight_grad_matmul": lambda: weight_grad_matmul(grad, x, weight, logits, mask, dweight, dlogits),
            "nm_prepass": lambda: nm_masked_weight(weight, logits, *nm, mask.seed, mask.draw, self.stream, x_dtype),
            "nm_weight_grad": lambda: nm_weight_grad(
                meta(1, n, k, dtype=w_dtype), weight, logits, *nm, mask.seed, mask.draw, self.stream, True, True
            ),
            "gaussian": lambda: gaussian_weight(weight, logits, mask.seed, mask.draw, self.stream, x_dtype),
            "moments": lambda: moments(weight, logits, logits, x_dtype),
            "moments_grad": lambda: moments_grad(
                meta(n, k, dtype=x_dtype), meta(n, k, dtype=x_dtype), weight, logits, logits
            ),
            "gaussian_grad": lambda: gaussian_grad(
                meta(1, n, k, dtype=w_dtype), logits, mask.seed, mask.draw, self.stream
            ),
            "forward": lambda: masked_matmul(x, weight, logits, None, mask, grad),
            "dx": lambda: masked_matmul(grad, weight, logits, None, mask, x, transpose=True),
            "forward, bits": lambda: masked_matmul(x, weight, logits, None, mask, grad, bits=bits),
            "dx, bits": lambda: masked_matmul(grad, weight, logits, None, mask, x, transpose=True, bits=bits),
            "one_pass": lambda: one_pass(grad[0], x[0], weight, logits, mask, dweight, dlogits),
            "weight_grad, kl": lambda: weight_grad(
                dweight.clone(), weight, logits, mask, dweight, dlogits, divergence=kl
            ),
            "weight_grad_matmul, kl": lambda: weight_grad_matmul(grad, x, weight, logits, mask, dweight, dlogits, kl),
            "one_pass, kl": lambda: one_pass(grad[0], x[0], weight, logits, mask, dweight, dlogits, kl),
        }
        calls[self.op]()


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def cases() -> Iterator[Case]:
    masters = ("bf16 bf16", "bf16 fp32")  # all in bfloat16; float32 weights under bfloat16 products
    yield Case("keep_mask", "bf16 bf16", quick=True)
    yield Case("threshold", "bf16 bf16")
    yield Case("threshold", "fp32 fp32", quick=True)
    for dtypes in (*masters, "fp32 fp32"):
        for estimator in ("straight_through", "concrete", "straight_through_concrete", "expected", "hard_concrete"):
            yield Case("prepass", dtypes, 0, estimator, quick=estimator == "straight_through")
            yield Case("weight_grad", dtypes, 0, estimator, quick=estimator == "straight_through")
        yield Case("multi_prepass", dtypes, quick=dtypes == "bf16 fp32")
        yield Case("multi_weight_grad", dtypes, quick=dtypes == "bf16 fp32")
        yield Case("mask_bits", dtypes, quick=dtypes == "bf16 fp32")
        for op in ("bernoulli_kl", "bernoulli_kl_grad", "spike_and_slab_kl", "spike_and_slab_kl_grad"):
            yield Case(op, dtypes, quick=dtypes == "bf16 fp32" and not op.startswith("spike"))
    for dtypes in masters:
        yield Case("weight_grad, kl", dtypes)
        for op in ("nm_prepass", "nm_weight_grad"):
            for pattern in ("2:4", "1:4", "4:8"):
                yield Case(op, dtypes, 0, pattern, quick=pattern == "2:4" and dtypes == "bf16 fp32")
        for op in ("gaussian", "gaussian_grad", "moments", "moments_grad"):
            yield Case(op, dtypes, 0, "", quick=dtypes == "bf16 fp32")
    for op in ("forward", "dx"):
        for dtypes in masters:
            for tokens in (16, 32, 64, 128):
                yield Case(op, dtypes, tokens, quick=tokens in (16, 128))
            yield Case(op, dtypes, 128, "concrete")
            yield Case(f"{op}, bits", dtypes, 1024)
        yield Case(op, "fp16 fp16", 128)
        yield Case(op, "fp32 fp32", 16)
        yield Case(op, "tf32 fp32", 512)
    for dtypes in masters:
        for tokens in (16, 32, 64):
            yield Case("one_pass", dtypes, tokens, quick=tokens == 64)
        yield Case("one_pass", dtypes, 128, since=90)
        yield Case("one_pass", dtypes, 64, "concrete")
        yield Case("one_pass, kl", dtypes, 64)
        yield Case("one_pass, kl", dtypes, 128, since=90)
        yield Case("weight_grad_matmul, kl", dtypes, 512)
        yield Case("weight_grad_matmul", dtypes, 512, quick=True)
        yield Case("weight_grad_matmul", dtypes, 512, "concrete")
    yield Case("weight_grad_matmul", "fp32 fp32", 16)
    yield Case("weight_grad_matmul", "tf32 fp32", 512)
    for estimator in ("straight_through", "hard_concrete"):
        for op in ("prepass", "weight_grad, kl", "multi_weight_grad"):
            yield Case(op, "bf16 fp32", 0, estimator, shape=ODD)
        for op in ("forward", "dx"):
            yield Case(op, "bf16 fp32", 16, estimator, shape=ODD)
            yield Case(op, "bf16 fp32", 64, estimator, shape=ODD)
            yield Case(op, "fp32 fp32", 16, estimator, shape=ODD)
        yield Case("one_pass, kl", "bf16 fp32", 32, estimator, shape=ODD)
        yield Case("one_pass, kl", "bf16 fp32", 64, estimator, since=90, shape=ODD)
        yield Case("weight_grad_matmul, kl", "bf16 fp32", 512, estimator, shape=ODD)


class Row(NamedTuple):
    """The result of compiling one kernel."""

    case: Case
    arch: int
    registers: int
    stack: int  # bytes a thread
    shared: int  # bytes
    matrix: str  # tensor-core instruction, how many, and where the masked operand comes from
    races: int  # writes to a left operand that a matrix instruction still reads
    load: int  # widest global load, bits
    store: int
    narrow: int  # loads of less than 16 bytes
    recompiles: bool  # for another stream, temperature or number of tokens

    def faults(self) -> list[str]:
        """Return the gates that this row breaks."""
        broken = ["recompiles"] if self.recompiles else []
        if self.races:
            broken.append(f"{self.races} races")
        if self.stack > (0 if self.case.aligned else SPILLED):
            broken.append(f"spills {self.stack} bytes")
        if self.shared > SHARED[self.arch]:
            broken.append("too much shared memory")
        if not self.case.aligned:
            return broken  # wide loads are impossible, and other tiles suit it
        in_loop = self.case.op in ("forward", "dx")
        if in_loop and self.arch == 90 and "from registers" not in self.matrix:
            broken.append("masked operand not in registers")
        if self.case.op == "forward" and in_loop and self.arch == 100 and "from tensor memory" not in self.matrix:
            broken.append("masked operand not in tensor memory")
        if self.load < 128 or (self.store < 128 and self.case.op not in SMALL):
            broken.append(f"loads {self.load} bits and stores {self.store} bits at a time")
        if not self.case.tokens and self.narrow > SCALARS:
            broken.append(f"{self.narrow} narrow loads")
        return broken


SMALL = ("mask_bits", "bernoulli_kl", "spike_and_slab_kl")
"""Ops whose result is too small for the width of its stores to matter."""
SCALARS = 11
"""Maximum number of narrow loads of a memory-bound kernel: those of seed, draw and the table entry of a layer."""


def specialise(case: Case, arch: int) -> Specialisation:
    """Return what Triton would compile for a case's first launch."""
    row = 9 if arch >= 90 else 8
    with (
        recorded(arch) as launches,
        mock.patch("stochprune.kernels.matmul.capability", lambda device: row),
        mock.patch("stochprune.kernels.one_pass.capability", lambda device: row),
    ):
        case.run()
    return launches[0].specialisation


def compile_case(case: Case, arch: int) -> Row:
    """Compile a case's kernel for sm_``arch`` and read the resources and the machine code."""
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
    """Return the tensor-core instructions of a kernel, and the source of the left operand of the first one."""
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
    lines = [
        "# What the Triton kernels compile to",
        "",
        f"Compiled and interpreted, **not yet run on a GPU**. Triton {triton.__version__}; the dtypes are "
        "those of x and of weights and logits. Made by `python -m bench.compile_table`.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    for row in rows:
        c = row.case
        cells = (
            c.op,
            "{} x {}".format(*c.shape),
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
