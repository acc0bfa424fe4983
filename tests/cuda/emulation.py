"""The CUDA kernels' own code compiled by g++ and run on the host, thread after thread: their numbers without a GPU."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCES = [ROOT / "tests/cuda/emulation.cpp", ROOT / "csrc/bindings_cuda.cpp", ROOT / "csrc/cuda/engine.cu"]


def _cuda_headers() -> Path | None:
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1], "/usr/local/cuda"]
    return next((Path(h) / "include" for h in homes if h and (Path(h) / "include/cuda_bf16.h").exists()), None)


def compile_for_host(sources: list[Path], output: Path, *options: str) -> None:
    """Compile sources that may include CUDA's headers with g++; skips the test where one of the two is missing."""
    headers, compiler = _cuda_headers(), shutil.which("g++")
    if headers is None or compiler is None:
        pytest.skip("emulating CUDA needs g++ and CUDA's headers")
    flags = ["-std=c++20", "-O1", "-x", "c++", f"-I{ROOT / 'csrc'}", f"-I{headers}", *options]
    subprocess.run([compiler, *flags, *sources, "-o", output], check=True)


@functools.cache
def emulation() -> ModuleType:
    """A module with the functions of ``stochprune._C.cuda``; skips the test where g++ or CUDA's headers are missing."""
    import pybind11

    text = b"".join(path.read_bytes() for path in sorted((ROOT / "csrc").rglob("*")) if path.is_file())
    built = ROOT / "build" / f"emulation-{hashlib.blake2s(text).hexdigest()[:16]}.so"
    if not built.exists():
        built.parent.mkdir(exist_ok=True)
        includes = [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
        scratch = built.with_suffix(f".{os.getpid()}")
        compile_for_host(SOURCES, scratch, "-shared", "-fPIC", *includes)
        scratch.replace(built)
    spec = importlib.util.spec_from_file_location("emulation", built)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
