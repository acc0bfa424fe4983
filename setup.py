"""Build: the pybind11 extension through CMake; ``kernels/`` and ``bench/suite/`` as packages of ``stochprune``.

A machine without CMake or a C++ compiler still installs: the plain PyTorch reference then serves, with a warning.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Builds the one extension with CMake, with CUDA where nvcc works, and puts it where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        try:
            try:
                self._cmake(target, cuda="ON")
            except subprocess.CalledProcessError:
                print("warning: once more without CUDA, in case nvcc and the C++ compiler do not fit", file=sys.stderr)
                self._cmake(target, cuda="OFF")
        except (OSError, subprocess.CalledProcessError) as error:
            print(
                f"warning: stochprune's C++ kernels were not built ({error}); "
                "the plain PyTorch reference will serve. Install cmake and a C++20 compiler, then reinstall.",
                file=sys.stderr,
            )

    def _cmake(self, target: Path, cuda: str) -> None:
        import pybind11

        scripts = str(Path(sys.executable).parent)
        cmake = shutil.which("cmake", path=os.pathsep.join([scripts, os.environ.get("PATH", "")]))
        if cmake is None:
            raise OSError("cmake was not found")
        work = Path(self.build_temp).resolve() / "cmake"
        work.mkdir(parents=True, exist_ok=True)
        configure = [
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={work / 'lib'}",
            f"-DSTOCHPRUNE_CUDA={cuda}",
        ]
        subprocess.run([cmake, "-S", str(ROOT), "-B", str(work), *configure], check=True)
        subprocess.run([cmake, "--build", str(work), "--parallel"], check=True)
        new = target.with_suffix(".new")  # a linker that is killed leaves half a file, which would crash every import
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(work / "lib" / target.name, new)
        new.replace(target)


OUTSIDE = {
    "stochprune.kernels": "kernels",
    "stochprune.bench": "bench/suite",
    "stochprune.bench.ops": "bench/suite/ops",
}
setup(
    packages=[*find_packages(include=["stochprune", "stochprune.*"]), *OUTSIDE],
    package_dir=OUTSIDE,
    ext_modules=[Extension("stochprune._C", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
