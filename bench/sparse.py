"""The gain from zeros in a weight on a CPU: the speed of linear layers and the size of files.

    python -m bench.sparse           # less than five minutes on a quiet machine; writes docs/results/sparse-weights.*
    python -m bench.sparse --quick   # checks that everything works; writes nothing

The contenders of a layer take turns, and the fastest call of each counts. Every result is compared with the product in
float64 before its time is taken. A ratio is the time of the dense layer divided by that of the contender, of one run.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import re
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import stochprune as sp
from bench.sparse_contenders import BLOCK, CONTENDERS, make
from bench.sparse_page import Row, page, sizes, speeds
from stochprune.runs.files import write_json
from stochprune.runs.results import versions

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results" / "sparse-weights.md"
SECONDS = 0.1  # of each contender and batch
TOLERANCE = 1e-5


class Layer(NamedTuple):
    """A weight, the batches it meets, and who runs it."""

    shape: tuple[int, int]
    pattern: str  # "unstructured", "2:4" or "blocks"
    sparsity: float
    batches: Sequence[int]
    contenders: Sequence[str]


USUAL = ("dense", "ONNX Runtime", "CSR", "SparseLinear")
ALL = tuple(CONTENDERS)
LARGE = [
    Layer(shape, "unstructured", sparsity, (1, 2, 4, 8, 16, 64), USUAL)
    for shape in ((1024, 1024), (4096, 1024), (4096, 4096))
    for sparsity in (0.9, 0.95, 0.98)
]
SMALL = [
    Layer(shape, "unstructured", sparsity, (1, 2, 8), USUAL)
    for shape in ((128, 128), (300, 784), (512, 512), (1024, 512))
    for sparsity in (0.9, 0.98)
]
FEW_ZEROS = [
    Layer(shape, "unstructured", sparsity, (1, 2, 8, 64), USUAL)
    for shape in ((1024, 1024), (2048, 2048))
    for sparsity in (0.5, 0.7, 0.8)
]
PATTERNS = [
    Layer((4096, 4096), pattern, sparsity, (1, 16), ALL)
    for pattern, sparsity in (("unstructured", 0.9), ("blocks", 0.9), ("2:4", 0.5))
]


def weight_of(shape: tuple[int, int], pattern: str, sparsity: float) -> Tensor:
    """A normal weight with zeros where the pattern has them: float32 [N, K]."""
    numbers = torch.Generator().manual_seed(0)
    weight, (n, k) = torch.randn(shape, generator=numbers), shape
    if pattern == "2:4":
        smallest = weight.abs().view(n, k // 4, 4).argsort(-1)[..., :2]
        kept = torch.ones(n, k // 4, 4, dtype=torch.bool).scatter_(-1, smallest, False).view(n, k)
    elif pattern == "blocks":
        blocks = torch.rand(n // BLOCK, k // BLOCK, generator=numbers) >= sparsity
        kept = blocks.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    else:
        kept = torch.rand(shape, generator=numbers) >= sparsity
    return weight.where(kept, 0)


def linear(weight: Tensor) -> nn.Linear:
    """A layer with this weight, and a bias."""
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": torch.linspace(-1, 1, len(weight))})
    return layer.requires_grad_(False)


def fastest(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Seconds of the fastest call of each, in turns, for ``seconds`` each on average."""
    best = dict.fromkeys(calls, float("inf"))
    end, rounds = time.perf_counter() + seconds * len(calls), 0
    while rounds < 3 or time.perf_counter() < end:
        rounds += 1
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def measure(layer: Layer, seconds: float) -> list[Row]:
    """One row a batch: milliseconds by contender, and why others are missing.

    Raises:
        ArithmeticError: a contender's result is wrong.
    """
    weight = weight_of(layer.shape, layer.pattern, layer.sparsity)
    module = linear(weight)
    made = {name: make(name, module) for name in layer.contenders}
    forwards = {name: forward for name, forward in made.items() if not isinstance(forward, str)}
    rows = []
    for batch in layer.batches:
        x = torch.randn(batch, weight.shape[1], generator=torch.Generator().manual_seed(batch))
        exact = x.double() @ weight.double().T + module.bias.double()
        for name, forward in forwards.items():
            tolerance = 1e-2 if name == "semi-structured" else TOLERANCE  # half precision
            error = float((forward(x) - exact).norm() / exact.norm())
            if not error < tolerance:
                raise ArithmeticError(f"{name}, {layer}, batch {batch}: relative error {error:.1e}")
        times = fastest({name: partial(forward, x) for name, forward in forwards.items()}, seconds)
        rows.append(
            {
                "shape": [*layer.shape],
                "pattern": layer.pattern,
                "sparsity": 1 - int(weight.count_nonzero()) / weight.numel(),
                "batch": batch,
                "threads": torch.get_num_threads(),
                "ms": {name: 1e3 * seconds for name, seconds in times.items()},
                "missing": {name: why for name, why in made.items() if isinstance(why, str)},
            }
        )
    return rows


def file_sizes() -> list[Row]:
    """Bytes of a layer of 1024 x 1024 in four kinds of file."""
    found = []
    cases = [("unstructured", s) for s in (0.5, 0.9, 0.95, 0.98)] + [("2:4", 0.5)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        for dtype in (torch.float32, torch.bfloat16):
            for pattern, sparsity in cases:
                layer = linear(weight_of((1024, 1024), pattern, sparsity)).to(dtype)
                dense = _dense_file(layer)
                sp.save_sparse(layer, path)
                restored = sp.load_sparse(path)["weight"]
                if not torch.equal(restored.view(torch.uint8), layer.weight.view(torch.uint8)):
                    raise ArithmeticError(f"{dtype}, {pattern}, {sparsity}: other bits came back")
                contents = {"dense": dense, "sparse": path.read_bytes()}
                contents |= {f"zip of {name}": _zipped(content) for name, content in contents.items()}
                about = {"dtype": str(dtype).removeprefix("torch."), "pattern": pattern, "sparsity": sparsity}
                found.append({**about, "bytes": {name: len(content) for name, content in contents.items()}})
    return found


def _dense_file(layer: nn.Linear) -> bytes:
    from safetensors.torch import save

    return save(layer.state_dict())


def _zipped(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("model", content)
    return packed.getvalue()


def processor() -> str:
    """The name of the processor."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", path.read_text()) if path.exists() else None
    return found[1] if found else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few small layers, to check that everything works")
    quick = parser.parse_args().quick
    groups = {"one_thread": LARGE, "all_threads": LARGE, "small": SMALL, "few_zeros": FEW_ZEROS, "patterns": PATTERNS}
    if quick:
        groups = {name: [layers[0]._replace(shape=(64, 128), batches=(1, 3))] for name, layers in groups.items()}
    cores, load, speed = torch.get_num_threads(), os.getloadavg()[0], {}
    with torch.inference_mode():
        for group, layers in groups.items():
            torch.set_num_threads(cores if group == "all_threads" else 1)
            speed[group] = [row for layer in layers for row in measure(layer, 0.01 if quick else SECONDS)]
            print(f"{group}\n{speeds(speed[group])}\n", flush=True)
    torch.set_num_threads(cores)
    files = file_sizes()
    print(sizes(files))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    about = {
        "processor": processor(),
        "cores": cores,
        "load": load,
        "instruction_set": sp.backends.load("native").describe(),
        "versions": {**versions(), "onnxruntime": version("onnxruntime")},
        "commit": commit,
        "command": "python -m bench.sparse",
    }
    content = page(about, speed, files)
    if not quick:
        PAGE.write_text(content)
        write_json(PAGE.with_suffix(".json"), {**about, "speed": speed, "files": files})


if __name__ == "__main__":
    main()
