"""The CUDA C++ kernels compile for every architecture within the gates, without a GPU."""

from __future__ import annotations

import shutil

import pytest

from bench import cuda_table


@pytest.mark.skipif(not (shutil.which("nvcc") and shutil.which(cuda_table.CUOBJDUMP)), reason="no nvcc")
@pytest.mark.parametrize("arch", cuda_table.ARCHITECTURES)
def test_gates(arch: str) -> None:
    rows = cuda_table.rows(arch)
    assert len(rows) == 2 + 2 * len(cuda_table.ESTIMATORS)
    assert not {row: row.faults() for row in rows if row.faults()}
