"""A program: the scan passes the in-register product as it is, and finds its races without the wait; else status 1."""

from __future__ import annotations

import triton

from bench.compile_table import compile_case
from bench.kernel_cases import Case
from stochprune.kernels import masked_matmul


@triton.jit
def unsettled(acc):
    return acc


if __name__ == "__main__":
    case = Case("forward", "bf16 bf16", 128)
    safe = compile_case(case, 90).faults()
    masked_matmul.settled = unsettled
    masked_matmul.masked_matmul_kernel.hash = None  # what the kernel calls has changed
    unsafe = compile_case(case, 90).races
    print(f"as it is: {safe or 'ok'}; without its wait: {unsafe} races")
    raise SystemExit(bool(safe) or not unsafe)
