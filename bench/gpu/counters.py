"""Read the hardware counters of three kernels with Nsight Compute, if it is installed and allowed to."""

from __future__ import annotations

import csv
import shutil
import sys
from typing import Any

from bench.gpu import device
from bench.gpu.job import LENGTH, Skip, tool

KERNELS = {  # the way, and M, N and K, with which the kernel is launched
    "masked_matmul": ("in_register", 128, 4096, 4096),
    "one_pass": ("in_register", 64, 4096, 4096),
    "prepass": ("prepass", 128, 4096, 4096),
}
METRICS = (
    "gpu__time_duration.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__inst_executed_pipe_tensor.sum",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
    "launch__occupancy_limit_registers",
)


def cases() -> list[str]:
    """Return the kernels."""
    device.require()
    return list(KERNELS)


def healthy() -> bool:
    """Return True: only other processes use the GPU."""
    return True


def run(case: str) -> dict[str, Any]:
    """Return the counters of a kernel's second launch.

    Raises:
        Skip: ncu is missing.
        RuntimeError: ncu failed or returned no counters.
    """
    path = shutil.which("ncu")
    if path is None:
        raise Skip("ncu is not on the PATH")
    command = [path, "--csv", "--clock-control", "none", "--target-processes", "all"]  # do not change the clocks
    command += ["--kernel-name", f"regex:{case}", "--launch-skip", "1", "--launch-count", "1"]
    command += ["--metrics", ",".join(METRICS), sys.executable, "-m", "bench.gpu.exercise", *map(str, KERNELS[case])]
    ended = tool(command)
    found = parse(ended.stdout)
    if ended.returncode or not found:
        raise RuntimeError(f"ncu ended with status {ended.returncode}:\n{(ended.stdout + ended.stderr)[-LENGTH:]}")
    return {"counters": found}


def parse(text: str) -> dict[str, str]:
    """Return the metrics of ncu's table by name, with units. The table has a line or a column for each metric."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    rows = list(csv.DictReader(lines[start:]))
    if rows and "Metric Name" in rows[0]:
        return {row["Metric Name"]: f"{row['Metric Value']} {row['Metric Unit']}".strip() for row in rows}
    if len(rows) < 2:
        return {}
    return {name: f"{rows[1][name]} {rows[0][name]}".strip() for name in METRICS if name in rows[0]}
