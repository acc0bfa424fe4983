"""Facts about this machine: processor, threads, compilers, GPUs, environment variables."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import torch

PROGRAMS = ("g++", "nvcc", "ninja", "cmake")
PREFIX = "STOCHPRUNE_"
OWN = tuple(PREFIX + name for name in ("BACKEND", "CPU", "RANK_TIMEOUT", "ROUTE"))
VARIABLES = ("CUDA_VISIBLE_DEVICES", "CXX", "MKL_NUM_THREADS", "OMP_NUM_THREADS", *OWN, "TRITON_INTERPRET")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")


def processor() -> dict[str, str]:
    """Return the processor's name, its instruction sets that matter here, and those that the C++ kernels use."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.is_file() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", text, re.MULTILINE)
    known = [flag for flag in INSTRUCTIONS if flags and flag in flags[1].split()]
    try:
        from stochprune import _C

        kernels = f"{_C.instruction_set()} in use; this machine runs {', '.join(_C.instruction_sets())}"
    except ImportError as error:
        kernels = f"no compiled extension: {error}"
    return {
        "processor": name[1] if name else platform.processor() or platform.machine(),
        "instruction sets": ", ".join(known) or "not known",
        "C++ kernels": kernels,
    }


def threads() -> dict[str, int]:
    """Return the cores that this process may use, and the threads of torch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"cores": cores, "torch threads": torch.get_num_threads()}


def compilers() -> dict[str, str]:
    """Return the version of each program that builds the kernels, by its name."""
    return {name: _version(name) for name in PROGRAMS}


def gpus() -> dict[str, str]:
    """Return what torch and the driver say of the GPUs."""
    found = {"torch's CUDA": torch.version.cuda or "none: this torch is built without CUDA"}
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            seen = torch.cuda.get_device_properties(i)
            found[f"GPU {i}"] = f"{seen.name}, sm_{seen.major}{seen.minor}, {seen.total_memory / 1e9:.0f} GB"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    found["driver"] = _first_line(query) if shutil.which("nvidia-smi") else "none: nvidia-smi was not found"
    return found


def variables() -> dict[str, str]:
    """Return the environment variables that change what runs; others may be secrets."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def unknown_variables() -> list[str]:
    """Return the names of environment variables that look like ours but that nothing reads."""
    return [name for name in sorted(os.environ) if name.startswith(PREFIX) and name not in OWN]


def _version(program: str) -> str:
    if shutil.which(program) is None:
        return "not found"
    lines = _output([program, "--version"])
    with_number = [line for line in lines if re.search(r"\d+\.\d+", line)]
    return (with_number or lines or ["no version"])[0]


def _first_line(command: list[str]) -> str:
    return (_output(command) or ["no answer"])[0]


def _output(command: list[str]) -> list[str]:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"no answer: {error}"]
    return [line.strip() for line in (ended.stdout or ended.stderr).splitlines() if line.strip()]
