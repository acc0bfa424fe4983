"""A program: the faults of the in-register product as it is, and without its wait; see test_sass."""

from __future__ import annotations

import triton

from bench.compile_table import Case, compile_case
from stochprune.kernels import masked_matmul


@triton.jit
def unsettled(acc):
    return acc


if __name__ == "__main__":
    case = Case("forward", "bf16 bf16", 128)
    print(compile_case(case, 90).faults())
    masked_matmul.settled = unsettled
    masked_matmul.masked_matmul_kernel.hash = None  # what the kernel calls has changed
    print(compile_case(case, 90).faults())
