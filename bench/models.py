"""Benchmark of whole networks on the CPU: a training step of masked ResNet-20, ResNet-18 and VGG-16 against dense.

    python -m bench.models              # a few minutes on one core
    python -m bench.models --rounds 1   # a quick look; writes nothing

The contenders of a network take turns on one thread, and the processor time is measured, so that other load matters
little. The tax is the median over rounds of the time divided by the dense network's time. A step is forward, backward
and deleting the gradients. The contender *eager* masks the weight in plain PyTorch, as a user would write it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn
from torch.nn.utils import parametrize

import stochprune as sp
from bench.memory import saved_bytes
from bench.tables import table
from bench.turns import medians, ratios, take_turns
from stochprune.models import resnet18, resnet20, vgg16
from stochprune.runs.files import write_json
from stochprune.runs.results import versions

ROOT = Path(__file__).parent.parent
ROUNDS = 5
SAVED = "saved for backward beyond dense, bytes a weight"
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # how to make the network, and its batch size
    "resnet20": (lambda: resnet20(seed=0), 128),
    "resnet18": (lambda: resnet18(seed=0), 64),
    "vgg16": (lambda: vgg16(seed=0), 128),
}


class Eager(nn.Module):
    """Masks a weight: straight-through by detaching, with the mask from ``rand_like``."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.full_like(weight, 3.0))

    def forward(self, weight: Tensor) -> Tensor:
        q = torch.sigmoid(self.logits)
        mask = (torch.rand_like(q) < q).to(q.dtype)
        return weight * (mask - q.detach() + q)


def eager(model: nn.Module) -> nn.Module:
    """Mask every linear and convolutional layer in plain PyTorch."""
    for module in [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]:
        parametrize.register_parametrization(module, "weight", Eager(module.weight))
    return model


def mask_only(model: nn.Module) -> nn.Module:
    """Convert the model and freeze the weights of its masked layers."""
    for layer in sp.nn.masked_layers(sp.convert(model)).values():
        layer.weight.requires_grad_(False)
    return model


CONTENDERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "dense": lambda model: model,
    "joint": sp.convert,
    "mask-only": mask_only,
    "one launch": sp.convert,  # its forward runs inside sp.nn.fused_masking
    "eager": eager,
}


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Return the medians of the steps in milliseconds of processor time, and of their ratios to dense."""
    make, batch = NETWORKS[name]
    x = torch.linspace(-1, 1, batch * 3 * 32 * 32).view(batch, 3, 32, 32).sin()
    y = torch.arange(batch) % 10
    models = {contender: change(make().train()) for contender, change in CONTENDERS.items()}

    def step(contender: str) -> None:
        model = models[contender]
        with sp.nn.fused_masking(model) if contender == "one launch" else contextlib.nullcontext():
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        model.zero_grad()

    times = take_turns({contender: partial(step, contender) for contender in models}, rounds)
    weights = sum(p.numel() for p in models["dense"].parameters() if p.dim() > 1)
    dense = saved_bytes(lambda: models["dense"](x), [*models["dense"].parameters(), *models["dense"].buffers(), x])
    return {
        "network": name,
        "batch": batch,
        "ms": medians(times, 1e3),
        "tax": ratios(times, "dense"),
        SAVED: {
            c: (saved_bytes(lambda m=m: m(x), [*m.parameters(), *m.buffers(), x]) - dense) / weights
            for c, m in models.items()
            if c != "one launch"  # its own hooks would run before the hooks that count
        },
    }


def saved(row: dict[str, Any], contender: str) -> str:
    """Return the saved bytes per weight as text, empty if they were not counted."""
    return f"{row[SAVED][contender]:.2f}" if contender in row[SAVED] else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="timed steps of each contender")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(name, options.rounds) for name in track(NETWORKS, "networks")]
    lines = [
        [row["network"], str(row["batch"]), c, f"{row['ms'][c]:.0f}", f"{row['tax'][c]:.2f}", saved(row, c)]
        for row in rows
        for c in CONTENDERS
    ]
    print(table(["network", "batch", "contender", "ms", "tax", SAVED], lines))
    if options.rounds < ROUNDS:
        return
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    about = {"threads": 1, "rounds": options.rounds, "commit": commit, "versions": versions()}
    path = ROOT / "bench" / "results" / f"models-{datetime.date.today()}-{commit[:10]}.json"
    write_json(path, {**about, "rows": rows})


if __name__ == "__main__":
    main()
