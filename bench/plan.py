"""Measure the memory of real steps beside its plan, each configuration in a fresh process.

    python -m bench.plan                    # four configurations of 100 million weights; 3 GB, a few minutes
    python -m bench.plan --weights 8 --steps 2 --only bf16

The peak of the resident memory (RSS) is compared, without what the process held before it built the model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "fp32": {"weights": "fp32", "sequence": 256},
    "bf16": {"sequence": 256},
    "small": {"logits": "bf16", "optimizer": "adamw8bit", "in_backward": True, "checkpointing": True, "sequence": 512},
    "nf4": {"weights": "nf4", "logits": "bf16", "optimizer": "adafactor", "in_backward": True, "sequence": 256},
}
"""Configurations of the training by name."""


def model_config(millions: float) -> dict[str, Any]:
    """Return the configuration of a Llama with about so many million masked weights in eight blocks."""
    hidden = max(64, round((millions * 1e6 / 8 / 12) ** 0.5 / 64) * 64)  # a block has 4 h^2 + 3 h (8/3 h) = 12 h^2
    return {
        "model_type": "llama",
        "vocab_size": 2048,
        "hidden_size": hidden,
        "intermediate_size": hidden * 8 // 3,
        "num_hidden_layers": 8,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "tie_word_embeddings": False,
    }


def compare(name: str, millions: float, steps: int) -> dict[str, Any]:
    """Return the plan and the measured peak of one configuration, in bytes, by running it in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(model_config(millions)))
        command = [sys.executable, "-m", "bench.plan", "--child", folder, "--only", name, "--steps", str(steps)]
        # Freed memory goes back to the system at once, so that the peak is that of the tensors.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        root = Path(__file__).parents[1]
        run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(run.stderr)
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result


def child(folder: str, name: str, steps: int) -> dict[str, Any]:
    """Run the steps of a configuration in this process and return the plan and the peak."""
    from transformers import AutoConfig

    from bench.mask_training import build
    from stochprune.language_models.model_sizes import LanguageModelSizes
    from stochprune.training.memory_plan import MemoryConfig, memory_plan

    training, config = MemoryConfig(**CASES[name]), AutoConfig.from_pretrained(folder)
    plan = memory_plan(LanguageModelSizes(folder), training)
    tiny = AutoConfig.for_model(**{**model_config(0.1), "num_hidden_layers": 1})
    build(tiny, training, "cpu")[1]()  # loads the code that the steps use
    reset_peak()
    before = status("VmRSS")
    _, step = build(config, training, "cpu")
    for _ in range(steps):
        step()
    peak = status("VmHWM") - before
    return {"case": name, "masked": plan.masked, "plan": plan.peak, "parts": plan.parts, "measured": peak}


def reset_peak() -> None:
    """Let the peak of this process's resident memory start from the present."""
    Path("/proc/self/clear_refs").write_text("5")


def status(field: str) -> int:
    """Return a field of this process's status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no field {field}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each configuration, and write ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=float, default=100, metavar="MILLIONS", help="masked weights")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", default="", help=", ".join(CASES))
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    parser.add_argument("--child", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(child(options.child, options.only, options.steps)))
        return
    results = []
    for name in options.only.split(",") if options.only else CASES:
        row = compare(name, options.weights, options.steps)
        error = row["plan"] / row["measured"] - 1
        masked = row["masked"] / 1e6
        print(
            f"{name:8s}{masked:8.1f} million weights  plan {row['plan'] / 1e9:6.3f} GB  "
            f"measured {row['measured'] / 1e9:6.3f} GB  {error:+.1%}"
        )
        results.append(row)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
