"""csrc/common/philox.h by the compilers it is written for: g++ runs it against the golden vectors, nvcc compiles it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from stochprune import rng

ROOT = Path(__file__).parent.parent
VECTORS = json.loads((Path(__file__).parent / "mask_vectors.json").read_text())["uniform16"]
HOST = r"""
#include <cstdio>
#include <cstdlib>
#include "common/philox.h"
int main(int, char** a) {
  const auto n = [&](int i) { return std::strtoull(a[i], nullptr, 10); };
  for (uint64_t r = 0; r < n(4); ++r)
    for (uint64_t c = 0; c < n(5); ++c)
      std::printf("%u ", stochprune::uniform16(n(1), n(2), n(3), uint32_t(n(6) + r), n(7) + c));
}
"""
NORMALS = r"""
#include <cstdio>
#include "common/normal.h"
int main() {
  for (uint32_t r = 0; r < 3; ++r)
    for (uint64_t c = 0; c < 300; ++c) std::printf("%.9g ", stochprune::normal(~0ull, 7, 5, r, (1ull << 34) - 300 + c));
}
"""
DEVICE = r"""
#include "common/normal.h"
__global__ void noise(float* out, uint64_t seed) { out[threadIdx.x] = stochprune::normal(seed, 1, 2, 3, threadIdx.x); }
__global__ void keep(bool* out, uint64_t seed, const uint16_t* threshold) {
  const uint32_t u = stochprune::uniform16(seed, 1, 2, blockIdx.x, threadIdx.x);
  out[threadIdx.x] = stochprune::keep(u, threshold[threadIdx.x]);
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_the_header_gives_the_golden_vectors(tmp_path):
    source, program = tmp_path / "host.cpp", tmp_path / "host"
    source.write_text(HOST)
    subprocess.run(["g++", "-std=c++20", "-O1", f"-I{ROOT / 'csrc'}", source, "-o", program], check=True)
    for case in VECTORS:
        names = ("seed", "draw", "stream", "rows", "cols", "row_offset", "col_offset")
        run = subprocess.run([program, *(str(case[n]) for n in names)], capture_output=True, text=True, check=True)
        assert [int(u) for u in run.stdout.split()] == [u for row in case["values"] for u in row]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_the_header_gives_the_reference_s_normals(tmp_path):
    source, program = tmp_path / "host.cpp", tmp_path / "host"
    source.write_text(NORMALS)
    subprocess.run(["g++", "-std=c++20", "-O1", f"-I{ROOT / 'csrc'}", source, "-o", program], check=True)
    out = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    exact = rng.normal(3, 300, seed=2**64 - 1, draw=7, stream=5, col_offset=2**34 - 300).flatten()
    assert all(abs(float(z) - e) < 1e-6 * abs(e) for z, e in zip(out, exact.tolist(), strict=True))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_the_header_compiles_for_the_device(tmp_path):
    source = tmp_path / "device.cu"
    source.write_text(DEVICE)
    command = ["nvcc", "-std=c++20", "-cubin", "-arch=sm_90a", f"-I{ROOT / 'csrc'}", source, "-o", tmp_path / "out"]
    subprocess.run(command, check=True)
