"""The gain from `shrink` on a CPU: ResNet-20, VGG-16, MobileNet v2 and a small ViT before and after.

    python -m bench.shrink              # a few minutes on two cores; writes docs/results/shrink.md and shrink.json
    python -m bench.shrink --rounds 1   # a quick look; writes nothing

Half of the filters of each convolution are masked and pruned; in the ViT one head of three, and half of the hidden
units. The models before and after take turns, in PyTorch and in ONNX Runtime, with one thread and with two. Times are
medians over rounds, and a gain is the median of the ratios of neighbouring runs.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from rich.progress import track
from torch import Tensor, nn

import stochprune as sp
from bench.tables import table
from stochprune.models import mobilenet_v2, resnet20, vgg16, vit
from stochprune.runs.files import write_json
from stochprune.runs.results import versions
from stochprune.seeding import generator

RESULTS = Path(__file__).parent.parent / "docs" / "results"
ROUNDS, BATCHES, THREADS, RUNTIMES = 15, (1, 16), (1, 2), ("PyTorch", "ONNX Runtime")
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-20": lambda: resnet20(seed=0),
    "VGG-16": lambda: vgg16(seed=0),
    "MobileNet v2": lambda: mobilenet_v2(seed=0),
    "ViT": lambda: vit(seed=0),
}
ABOUT = """# What `shrink` buys

A pruned weight that is only set to zero costs as much as any other. `sp.shrink` removes the rows, filters and heads
that are zero from the model. This page compares four networks on images of 32 x 32 before and after.

- Convolutional networks: half of the filters of every convolution are pruned. Layers of the same width prune the same
  filters, so that the channels of residual connections can go.
- ViT: one head of three in each block, and half of the hidden units.

The weights are random, and the parameters of batch normalisation are random too, so that pruned filters are constants
that are not zero, as after training. The outputs before and after are equal to 1e-5.

Not seen here: the accuracy of a network that is trained with half of its filters; GPUs; residual networks whose layers
prune different filters, where fewer channels can go.
"""


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """Return bool masks that prune half of the filters or hidden units, and one head of three, by weight name."""
    masks = {}
    for name, weight in model.named_parameters():
        rows = torch.ones(len(weight), dtype=torch.bool)
        if name.endswith("qkv.weight"):
            rows.view(3, 3, -1)[:, 1] = False  # [q k v, heads, width of a head]
        elif (weight.dim() == 4 and not name.startswith("patch")) or name.endswith("fc1.weight"):
            order = generator(0, "shrink", str(len(weight))).permutation(len(weight))
            rows[torch.from_numpy(order[: len(weight) // 2])] = False
        else:
            continue
        masks[name] = rows.view(-1, *[1] * (weight.dim() - 1)).expand_as(weight)
    return masks


def pruned(model: nn.Module) -> nn.Module:
    """Convert a model with masks of whole rows, and harden it."""
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.bias, module.running_mean):
                values = generator(0, "shrink", name).standard_normal(len(tensor))
                tensor.data.copy_(0.3 * torch.from_numpy(values))
    return sp.harden(sp.convert(model, masks_of(model), pattern="rows")).eval()


def runner(model: nn.Module, exported: bytes, runtime: str, threads: int) -> Callable[[Tensor], Any]:
    """Return a function that runs a model, or what was exported of it, on a batch with a number of threads."""
    if runtime == "PyTorch":

        def run(x: Tensor) -> Any:
            torch.set_num_threads(threads)
            with torch.inference_mode():
                return model(x)

        return run
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x.numpy()})


def export(model: nn.Module) -> bytes:
    """Return a model in ONNX, for batches of any size."""
    x, any_batch = torch.zeros(2, 3, 32, 32), ({0: torch.export.Dim.DYNAMIC},)
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False, dynamic_shapes=any_batch)
    return program.model_proto.SerializeToString()


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Return parameters, MACs and times in milliseconds of one network before and after."""
    before = pruned(NETWORKS[name]())
    after = sp.shrink(before, torch.linspace(-1, 1, 2 * 3072).view(2, 3, 32, 32).sin())
    report = after.shrink_report
    exported = [(model, export(model)) for model in (before, after)]
    cases = []
    for runtime in RUNTIMES:
        for threads in THREADS:
            runners = [runner(*model, runtime, threads) for model in exported]
            for batch in BATCHES:
                x = torch.linspace(-1, 1, batch * 3072).view(batch, 3, 32, 32).sin()
                times: tuple[list[float], list[float]] = ([], [])
                for i in track(range(rounds + 2), f"{name}, {runtime}, {threads} threads, batch {batch}"):
                    for run, own in zip(runners, times, strict=True):
                        start = time.perf_counter()
                        run(x)
                        if i > 1:  # the first two warm up
                            own.append(1e3 * (time.perf_counter() - start))
                ratios = [b / a for b, a in zip(*times, strict=True)]
                cases.append(
                    {
                        "runtime": runtime,
                        "threads": threads,
                        "batch": batch,
                        "ms": [statistics.median(own) for own in times],
                        "gain": statistics.median(ratios),
                    }
                )
    macs = [count // 2 for count in report.macs]  # of one image
    return {"network": name, "parameters": report.parameters, "macs": macs, "cases": cases}


def tables(rows: list[dict[str, Any]]) -> str:
    """Return the tables of sizes and of times, Markdown."""
    sizes = []
    for row in rows:
        cells = [f"{number / 1e6:.2f}" for number in (*row["parameters"], *row["macs"])]
        ratios = [f"{row[key][0] / row[key][1]:.1f}x" for key in ("parameters", "macs")]
        sizes.append([row["network"], *cells[:2], ratios[0], *cells[2:], ratios[1]])
    times = []
    for row in rows:
        for case in row["cases"]:
            setting = [str(case[key]) for key in ("runtime", "threads", "batch")]
            times.append([row["network"], *setting, *(f"{ms:.2f}" for ms in case["ms"]), f"{case['gain']:.2f}x"])
    head = ["network", "parameters, millions", "after", "fewer", "MACs of an image, millions", "after", "fewer"]
    of_times = ["network", "runtime", "threads", "batch", "ms before", "ms after", "faster"]
    return f"## Size\n\n{table(head, sizes)}\n\n## Time of a forward pass\n\n{table(of_times, times)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="forward passes of each contender")
    options = parser.parse_args()
    rows = [measure(name, options.rounds) for name in NETWORKS]
    print(tables(rows))
    if options.rounds < ROUNDS:
        return
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    software = {**versions(torch.device("cpu")), "onnxruntime": version("onnxruntime")}
    about = {"command": "python -m bench.shrink", "rounds": options.rounds, "commit": commit, "versions": software}
    write_json(RESULTS / "shrink.json", {**about, "rows": rows})
    made = ", ".join(f"{name} {number}" for name, number in software.items())
    foot = f"\nMade by `{about['command']}` in {options.rounds} rounds, commit {commit[:10]}: {made}.\n"
    (RESULTS / "shrink.md").write_text(f"{ABOUT}\n{tables(rows)}{foot}")


if __name__ == "__main__":
    main()
