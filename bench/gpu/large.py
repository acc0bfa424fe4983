"""Fine-tune the masks of a randomly initialised 7-billion model for some steps, and record memory, speed and the plan.

    make gpu-large                                                   # or python -m bench.gpu.large
    python -m bench.gpu.large --set weights=nf4 --set optimizer=adafactor --set checkpointing=True
    python -m bench.gpu.large --model tiny --device cpu --steps 3    # on any machine, in seconds

Writes ``large-<time>.json`` to bench/results, and to the folder in the variable OUT if it is set. Needs transformers,
and bitsandbytes or torchao for optimisers and weights in eight or four bits; no weights are loaded.
"""

from __future__ import annotations

import argparse
import ast
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from bench.gpu.journal import Journal, folders, say
from bench.mask_training import build
from bench.plan import model_config, reset_peak, status
from stochprune.language_models.model_sizes import LanguageModelSizes
from stochprune.training.memory_plan import MemoryConfig, MemoryPlan, memory_plan

MODELS: dict[str, dict[str, Any]] = {
    "7b": {  # the shape of Llama-2-7B
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "tie_word_embeddings": False,
    },
    "tiny": model_config(0.4),
}
DEFAULTS = {"logits": "bf16", "optimizer": "adamw8bit", "in_backward": True, "checkpointing": True}
"""43 GB for the 7-billion model."""


class Memory:
    """The peak of the memory on a device since the start: allocated tensors on a GPU, resident memory on the CPU."""

    def __init__(self, device: str) -> None:
        self.gpu = torch.device(device).type == "cuda"
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            reset_peak()
        self.before = torch.cuda.memory_allocated() if self.gpu else status("VmRSS")

    def peak(self) -> int:
        """Return the peak, in bytes, without what was in use at the start."""
        return (torch.cuda.max_memory_allocated() if self.gpu else status("VmHWM")) - self.before


def run(model: dict[str, Any], training: MemoryConfig, device: str, steps: int) -> dict[str, Any]:
    """Make the steps and return the row of results."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(model))
        sizes, config = LanguageModelSizes(folder), AutoConfig.from_pretrained(folder)
    plan = memory_plan(sizes, training)
    say(f"{plan.masked:,} masked weights; plan: {plan.peak / 1e9:.2f} GB")
    memory = Memory(device)
    _, step = build(config, training, device)
    if memory.gpu:
        torch.cuda.reset_peak_memory_stats()  # of training: building a quantised model takes more for a moment
    losses, seconds = [], []
    for number in range(steps):
        start = time.perf_counter()
        losses.append(step())  # waits for the GPU, because the loss is a number
        seconds.append(time.perf_counter() - start)
        say(f"step {number + 1} of {steps}: loss {losses[-1]:.4f}, {seconds[-1]:.2f} s")
    if memory.gpu:
        torch.cuda.synchronize()
    return row(plan, training, memory.peak(), losses, seconds)


def row(
    plan: MemoryPlan, training: MemoryConfig, peak: int, losses: list[float], seconds: list[float]
) -> dict[str, Any]:
    """Return the results as they are written."""
    tokens = training.batch_size * training.sequence * training.accumulation
    typical = statistics.median(seconds[len(seconds) > 2 and 2 :])  # the first ones compile and allocate
    return {
        "masked": plan.masked,
        "training": vars(training),
        "plan": {"peak": plan.peak, **plan.parts},
        "peak": peak,
        "plan_error": plan.peak / peak - 1,
        "bytes_a_weight": peak / plan.masked,
        "tokens_a_second": tokens / typical,
        "seconds": seconds,
        "losses": losses,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0, or 2 if there is no GPU, a package is missing or an option is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a field of MemoryConfig")
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("torch sees no GPU; try --device cpu --model tiny", file=sys.stderr)
        return 2
    try:
        training = MemoryConfig(**{**DEFAULTS, **dict(map(_field, options.set))})
    except (TypeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    try:
        found = run(MODELS[options.model], training, options.device, options.steps)
    except ModuleNotFoundError as error:
        print(f"{error}; without it: --set optimizer=masked-adamw --set weights=bf16", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.processor() or "CPU"
    about = {"model": options.model, "device": name, "torch": torch.__version__}
    stamp = time.strftime("%Y-%m-%d-%H%M%S")
    paths = Journal(stamp, folders()).save(f"large-{stamp}.json", json.dumps({**about, **found}, indent=1) + "\n")
    say(f"peak {found['peak'] / 1e9:.2f} GB, plan {found['plan_error']:+.1%}, {found['tokens_a_second']:.0f} tokens/s")
    say("wrote " + (", ".join(map(str, paths)) or "nothing: no folder could be written"))
    return 0


def _field(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


if __name__ == "__main__":
    sys.exit(main())
