"""The steps of `make gpu-check` measure and report, on the CPU with small shapes and made-up times."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from bench.gpu import calibration, certificates, counters, device, exercise, install, sanitizer, smoke, times
from bench.gpu.job import Failed, Skip, Unusable
from bench.gpu.steps import STEPS
from stochprune import backends
from stochprune.kernels.routes import ROUTES


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "rehearsal"))
    importlib.import_module("mocked").mock(monkeypatch.setattr)
    with torch.random.fork_rng(devices=[]):  # the baselines draw from it
        yield
    backends.forget()
    smoke.reference.cache_clear()


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], None]:
    """Puts a program on a PATH that has nothing else but a shell."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def put(name: str, script: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)

    return put


MODULES = [importlib.import_module(step.module) for step in STEPS]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rsplit(".", 1)[-1])
def test_every_step_has_what_a_worker_calls(module: ModuleType) -> None:
    assert hasattr(module, "work") or all(callable(getattr(module, name)) for name in ("cases", "run", "healthy"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_no_step_starts() -> None:
    for module in (smoke, times, counters, calibration, sanitizer, certificates):
        with pytest.raises(Unusable, match="GPU"):
            module.cases()
    with pytest.raises(Unusable, match="GPU"):
        install.run("versions")


def test_smoke_takes_every_route_on_every_shape(small: None) -> None:
    assert len(smoke.cases()) == len(smoke.SHAPES) * len(ROUTES)
    for case in smoke.cases()[: len(ROUTES)]:
        found = smoke.run(case)
        assert max(found["errors"].values()) < 1e-5 and set(found["errors"]) == set(smoke.NAMES)
        assert set(found["different"].values()) == {0}
    exercise.exercise("prepass", 3, 24, 70, 1)


@pytest.mark.parametrize("fault", ["wrong", "nan", "race"])
def test_smoke_finds_wrong_numbers_and_races(small: None, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    right, calls = smoke.step, []

    def step(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y, *rest = right(*tensors)
        if tensors[0].dtype == torch.float32:  # ours; the reference is in float64
            calls.append(1)
            y = y.clone()
            if fault == "wrong":
                y[0] = y[0] * 1.5
            elif fault == "nan" or len(calls) == 3:
                y[0, 0] = float("nan") if fault == "nan" else y[0, 0] + 1e-6
        return y, *rest

    monkeypatch.setattr(smoke, "step", step)
    with pytest.raises(Failed, match="race" if fault == "race" else "float64") as caught:
        smoke.run("prepass 3x24x70")
    assert (caught.value.found["different"]["y"] > 0) == (fault != "wrong")  # NaN differs from itself
    assert caught.value.found["different"]["dx"] == 0


def test_every_contender_is_timed_in_a_graph_and_eagerly(small: None) -> None:
    cases = times.cases()
    assert cases[0] == "ceilings" and any("each | eager" in case for case in cases)
    for case in (c for c in cases if "dense" in c or "eager" in c or "replay" in c or "each | in_register" in c):
        *_, found = times.run(case)
        for part in ("forward", "step"):
            assert found[part]["eager_us"] == 4 and found[part]["graph_us"] == 2
        assert found["step"]["host_us"] > 0 and found["step"]["peak_bytes"] == 7 and found["step"]["saved_bytes"] >= 0
        assert "no launch" in found["step"]["launches"]  # on a CPU


def test_a_contender_that_hangs_costs_no_other_of_its_shape() -> None:
    """compile may hang at every size, a minute each: by then the others at these weights have been timed."""
    square = [c for size, c in times.PLAN if (size.n, size.k) == times.SQUARE][: 5 * len(times.TOKENS)]
    assert square == [*times.FIRST * len(times.TOKENS), *["compile"] * len(times.TOKENS)]
    assert len(times.PLAN) == len(set(times.PLAN))


@pytest.mark.parametrize("size", [size for size, _ in times.PLAN[1::9]], ids=str)
def test_the_weights_of_a_graph_exceed_the_cache(monkeypatch: pytest.MonkeyPatch, size: times.Size) -> None:
    """Only the weights count: the dense layer reads no logits, and its weights must not be in the cache either."""
    monkeypatch.setattr(torch, "Generator", MagicMock())
    monkeypatch.setattr(torch, "randn", lambda *shape, dtype, **_: torch.empty(shape, dtype=dtype, device="meta"))
    forwards, steps, owned = times.calls(size, times.CONTENDERS["dense"], "dense")
    weight = owned[3]
    assert len(forwards) == len(steps) <= 8 and len(steps) * weight.nbytes >= 2 * 60e6  # an H200's has 60 MB


@pytest.mark.parametrize("case", [times.Size(128, 4096, 14336, "fp32"), times.Size(16, 8, 24, masks="each")])
def test_a_size_is_read_back(case: times.Size) -> None:
    assert times.Size.read(str(case)) == case


def test_a_contender_that_cannot_be_captured_keeps_its_eager_times(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(runs: Any) -> float:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(device, "graph_us", refuse)
    *_, found = times.run(f"{times.Size(1, 24, 40)} | dense")
    assert "capturing" in found["step"]["graph_us"] and found["step"]["eager_us"] == 4


def test_a_kernel_that_fails_while_it_is_timed_fails_its_case(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no contender that cannot be captured, whose eager times would stand."""

    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(device, "graph_us", fail)
    monkeypatch.setattr(device, "synchronize", fail)
    with pytest.raises(RuntimeError, match="illegal memory"):
        list(times.run(f"{times.Size(1, 24, 40)} | dense"))


def test_calibration_and_certificates(small: None) -> None:
    assert calibration.run(*calibration.cases())["launch"] == 3e-6
    assert certificates.run(certificates.cases()[0]) == {"alone": 2.0, "together": 1.0, "minutes": 150_000 / 60e6}


def test_calibration_measures_every_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("stochprune.kernels.calibrate")  # not the function of the same name

    def once(run: Callable[[], object]) -> float:
        run()
        return 2.0

    monkeypatch.setattr(module, "SIZE", 64)
    monkeypatch.setattr(module, "COPY", 1 << 10)
    monkeypatch.setattr(module, "_seconds", once)
    before = torch.backends.cuda.matmul.fp32_precision
    found = module.measure(torch.device("cpu"))
    assert torch.backends.cuda.matmul.fp32_precision == before
    assert found.bandwidth == 1 << 10 and found.launch == 0.1
    assert found.matmul == (256 * 64.0**2, 64.0**3, 64.0**3)
    assert all(len(loop) == 3 and min(loop) > 0 for loop in (found.loop, found.from_logits, found.from_thresholds))


LONG = '==PROF== Connected\n"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n"0","k","a","%","12.5"\n'
WIDE = '"ID","launch__registers_per_thread","gpu__time_duration.sum"\n"","register/thread","ns"\n"0","168","1,234"\n'


def test_counters_are_read_in_either_form() -> None:
    assert counters.parse(LONG) == {"a": "12.5 %"}
    assert counters.parse(WIDE) == {
        "gpu__time_duration.sum": "1,234 ns",
        "launch__registers_per_thread": "168 register/thread",
    }
    assert counters.parse("==ERROR== no permission") == {}


def test_the_profiler_may_be_missing_or_fail(small: None, tool: Callable[[str, str], None], tmp_path: Path) -> None:
    with pytest.raises(Skip, match="ncu"):
        counters.run("one_pass")
    (tmp_path / "table").write_text(LONG)
    tool("ncu", f'echo "$@" > {tmp_path}/said; while read line; do echo "$line"; done < {tmp_path}/table')
    assert counters.run("one_pass") == {"counters": {"a": "12.5 %"}}
    said = (tmp_path / "said").read_text()
    assert "--clock-control none" in said and "bench.gpu.exercise in_register 64 4096 4096" in said
    tool("ncu", "echo '==ERROR== ERR_NVGPUCTRPERM'; exit 1")
    with pytest.raises(RuntimeError, match="ERR_NVGPUCTRPERM"):
        counters.run("one_pass")


def test_the_sanitizer_may_be_missing_or_find_faults(
    small: None, tool: Callable[[str, str], None], tmp_path: Path
) -> None:
    with pytest.raises(Skip, match="compute-sanitizer"):
        sanitizer.run("thresholds")
    tool("compute-sanitizer", f'echo "$PYTORCH_NO_CUDA_MEMORY_CACHING $@" > {tmp_path}/said')
    assert sanitizer.run("thresholds") == {"verdict": "clean"}
    said = (tmp_path / "said").read_text()
    assert said.startswith("1 --tool memcheck") and "bench.gpu.exercise thresholds 300 77 333" in said
    tool("compute-sanitizer", "echo Device not supported; exit 1")
    with pytest.raises(Skip, match="support"):
        sanitizer.run("thresholds")
    tool("compute-sanitizer", "echo Invalid __global__ read; exit 9")
    with pytest.raises(RuntimeError, match="Invalid __global__ read"):
        sanitizer.run("thresholds")


@pytest.fixture
def machine(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that has a name only."""
    mocked = importlib.import_module("mocked")
    for name in ("is_available", "get_device_capability", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, getattr(torch.cuda, name))
    monkeypatch.setattr(install, "PIP", install.PIP)
    mocked.mock_machine()


def test_versions_without_git_nvcc_and_driver(machine: None, tool: Callable[[str, str], None]) -> None:
    found = install.run("versions")
    assert [found[name] for name in ("commit", "changed", "nvcc", "ncu", "driver")] == ["unknown"] * 5
    assert found["gpu"] == "Mocked GPU" and found["torch"] == torch.__version__ and len(found["source"]) == 12
    tool("git", "exit 128")  # a folder that git does not trust
    tool("nvcc", "echo 'Cuda compilation tools, release 13.0, V13.0.88'")
    found = install.run("versions")
    assert found["commit"] == "unknown" and found["nvcc"] == "13.0"


def test_a_program_that_hangs_costs_no_versions(
    machine: None, tool: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A program that hangs in the driver of a GPU, so that no signal ends it, costs none either."""
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: None)
    monkeypatch.setattr(install, "SAID_SECONDS", 0.5)
    tool("nvidia-smi", f"echo $$ > {tmp_path}/child; exec /bin/sleep 60")
    start = time.monotonic()
    assert install.run("versions")["driver"] == "unknown" and time.monotonic() - start < 30
    os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_the_package_is_built_for_one_gpu_and_in_place_where_pip_fails(
    machine: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write = f"import os; open({str(tmp_path / 'said')!r}, 'a').write(os.environ['CUDAARCHS'])"
    monkeypatch.setattr(install, "METADATA", ("-c", "pass"))
    monkeypatch.setattr(install, "PIP", ("-c", "raise SystemExit('no pip here')"))
    monkeypatch.setattr(install, "IN_PLACE", ("-c", write))
    monkeypatch.setattr(install, "BACKENDS", "print('cpu native ready')")
    found = install.run("package")
    assert (found["by"], found["architecture"], found["backends"]) == ("in place", "90a-real", ["cpu native ready"])
    assert "no pip here" in found["errors"][0] and (tmp_path / "said").read_text() == "90a-real"
    assert "CUDAARCHS" not in os.environ
    monkeypatch.setattr(install, "IN_PLACE", ("-c", "raise SystemExit('no compiler')"))
    with pytest.raises(RuntimeError, match="no compiler"):
        install.run("package")


def test_the_page_gives_every_step_its_time() -> None:
    page = (install.ROOT / "docs" / "gpu.md").read_text()
    for step in STEPS:
        assert f"| `{step.name}` | {step.seconds} |" in page


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize(("variable", "built"), [(None, {"80", "90a", "100"}), ("90a-real", {"90a"})])
def test_the_build_takes_its_architectures_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str | None, built: set[str]
) -> None:
    cmake, pybind11 = (pytest.importorskip(name) for name in ("cmake", "pybind11"))
    monkeypatch.delenv("CUDAARCHS", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDAARCHS", variable)
    command = [Path(cmake.CMAKE_BIN_DIR) / "cmake", "-S", install.ROOT, "-B", tmp_path]
    options = [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    subprocess.run([*command, *options, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"], check=True, capture_output=True)
    assert set(re.findall(r"arch=compute_(\w+)", (tmp_path / "compile_commands.json").read_text())) == built
