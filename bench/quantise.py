"""Pruning with post-training quantisation: errors and sizes of hardened networks in eight bits and fewer.

    python -m bench.quantise --data mnist --data-dir DIR   # writes docs/results/quantisation.md and quantisation.json
    python -m bench.quantise --quick                       # the digits, one seed; writes nothing

Each network is trained, pruned by mask fine-tuning with a falling budget, hardened, trained a little more, and then
quantised without further training.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import warnings
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import stochprune as sp
from bench.tables import table
from stochprune import training
from stochprune.report.pivot import spread
from stochprune.runs.files import write_json
from stochprune.runs.results import versions

with warnings.catch_warnings():  # torch announces that these move to another package
    warnings.simplefilter("ignore")
    from torch.ao import quantization as ao

RESULTS = Path(__file__).parent.parent / "docs" / "results"
SPARSITIES, SEEDS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98), (0, 1, 2)
ABOUT = """# Pruning with post-training quantisation

A pruned network is a plain network after `sp.harden`, so torch's quantisation takes it as it is. This page prunes
LeNet-300-100 and then quantises it without further training. The question is whether pruning and quantisation harm each
other.

- *dynamic*: eight bits for weights, with one scale for each layer or for each output; inputs of a layer are quantised
  as they come (`torch.ao.quantization.quantize_dynamic`).
- *static*: eight bits for weights and activations, with ranges from 1,000 training examples, and one scale for each
  output.
- *4 bits, 3 bits*: only the weights are rounded, symmetrically and with one scale for each output.

Zero is a value of every grid, so pruned weights stay exactly zero: the script checks each of them. The sizes are those
of the weights of all layers after zlib, in kilobytes, in float32 and in eight bits with one scale for each output.
"""


def pruned(dataset: sp.data.Dataset, sparsity: float, seed: int, epochs: int) -> nn.Sequential:
    """Return a trained network of which the fraction ``sparsity`` is zero."""
    model = sp.models.build("lenet_300_100", dataset.shape, dataset.num_classes, seed=seed)
    batches = sp.data.Batches(dataset.train_x, dataset.train_y, batch_size=128, seed=seed)
    training.train_weights(model, batches, training.WeightConfig(epochs))
    last = training.WeightConfig(-(-epochs // 4))
    if not sparsity:
        training.train_weights(model, batches, training.WeightConfig(epochs + last.epochs))
        return model
    config = training.FinetuneConfig(epochs=epochs, budget_schedule="cubic", start="score")
    sp.prune_finetune(model, batches, sparsity, config=config, weights=last)
    return model


def dynamic(model: nn.Sequential, qconfig: Any) -> nn.Module:
    """Return the model with weights in eight bits, and inputs that are quantised as they come."""
    return ao.quantize_dynamic(copy.deepcopy(model).eval(), {nn.Linear: qconfig})


def static(model: nn.Sequential, examples: Tensor) -> nn.Module:
    """Return the model with weights and activations in eight bits, with ranges from ``examples``."""
    wrapped = ao.QuantWrapper(copy.deepcopy(model).eval())
    wrapped.qconfig = ao.get_default_qconfig("x86")
    ao.prepare(wrapped, inplace=True)
    with torch.no_grad():
        wrapped(examples)
    return ao.convert(wrapped, inplace=True)


def rounded(model: nn.Sequential, bits: int) -> nn.Module:
    """Return the model with weights rounded to ``2^bits - 1`` values around 0, with one scale for each output."""
    result = copy.deepcopy(model)
    top = 2 ** (bits - 1) - 1
    with torch.no_grad():
        for layer in result.modules():
            if isinstance(layer, nn.Linear):
                scale = layer.weight.abs().amax(1).div(top).clamp(min=1e-12)  # a row of zeros has any scale
                zero = torch.zeros(len(scale), dtype=torch.int32)
                layer.weight.copy_(torch.fake_quantize_per_channel_affine(layer.weight, scale, zero, 0, -top, top))
    return result


def integers(model: nn.Module) -> list[Tensor]:
    """Return the weights of the quantised linear layers, int8 [out, in], in order."""
    layers = [module for module in model.modules() if hasattr(module, "weight") and callable(module.weight)]
    return [layer.weight().int_repr() for layer in layers]


def check_zeros(model: nn.Sequential, quantised: nn.Module) -> None:
    """Raise ``AssertionError`` if a pruned weight is not exactly zero after quantisation."""
    floats = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]
    for before, after in zip(floats, integers(quantised), strict=True):
        assert not bool(after[before == 0].any())


def kilobytes(tensors: list[Tensor]) -> float:
    """Return the size of tensors after zlib."""
    return sum(len(zlib.compress(tensor.detach().contiguous().numpy().tobytes(), 9)) for tensor in tensors) / 1e3


def measure(dataset: sp.data.Dataset, sparsity: float, seed: int, epochs: int) -> dict[str, float]:
    """Return test errors in per cent and sizes in kilobytes of one network, by column."""
    model = pruned(dataset, sparsity, seed, epochs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        eight = {
            "dynamic, per layer": dynamic(model, ao.default_dynamic_qconfig),
            "dynamic, per output": dynamic(model, ao.per_channel_dynamic_qconfig),
            "static": static(model, dataset.train_x[:1000]),
        }
        for quantised in eight.values():
            check_zeros(model, quantised)
        networks = {"float32": model, **eight, "4 bits": rounded(model, 4), "3 bits": rounded(model, 3)}
        errors = {
            name: training.error(training.predict(network, dataset.test_x), dataset.test_y)
            for name, network in networks.items()
        }
        sizes = {
            "float32, kB": kilobytes([layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]),
            "8 bits, kB": kilobytes(integers(eight["dynamic, per output"])),
        }
    return {"sparsity": sparsity, "seed": seed, **errors, **sizes}


def page_table(rows: list[dict[str, float]]) -> str:
    """Return the table, Markdown: a line for each sparsity, means and standard deviations over seeds."""
    columns = [name for name in rows[0] if name not in ("sparsity", "seed")]
    lines = []
    for sparsity in dict.fromkeys(row["sparsity"] for row in rows):
        mine = [row for row in rows if row["sparsity"] == sparsity]
        sizes = [name.endswith("kB") for name in columns]
        cells = [
            f"{sum(row[name] for row in mine) / len(mine):.0f}" if size else spread([row[name] for row in mine])
            for name, size in zip(columns, sizes, strict=True)
        ]
        lines.append([f"{100 * sparsity:g} %", *cells])
    return table(["pruned", *columns], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="data set")
    parser.add_argument("--data-dir", type=Path, help="folder of the data set's files")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of the dense training, and of the fine-tuning")
    parser.add_argument("--quick", action="store_true", help="one seed, two sparsities; write nothing")
    options = parser.parse_args()
    dataset = sp.data.load(options.data, options.data_dir)
    seeds, sparsities = (SEEDS[:1], (0.0, 0.9)) if options.quick else (SEEDS, SPARSITIES)
    rows = [measure(dataset, sparsity, seed, options.epochs) for sparsity in sparsities for seed in seeds]
    print(page_table(rows))
    if options.quick:
        return
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    command = f"python -m bench.quantise --data {options.data} --epochs {options.epochs}"
    software = versions(torch.device("cpu"))
    about = {"command": command, "commit": commit, "versions": software}
    write_json(RESULTS / "quantisation.json", {**about, "rows": rows})
    made = ", ".join(f"{name} {number}" for name, number in software.items())
    text = (
        f"Test error in per cent on {dataset.name}, mean ± standard deviation of {len(seeds)} seeds; sizes are means."
    )
    foot = f"Made by `{command}`, commit {commit[:10]}: {made}."
    (RESULTS / "quantisation.md").write_text(f"{ABOUT}\n{text}\n\n{page_table(rows)}\n\n{foot}\n")


if __name__ == "__main__":
    main()
