"""Mask fine-tuning in several processes, each with its share of every batch; it also runs in one process.

torchrun --nproc-per-node 2 examples/data_parallel.py
accelerate launch --multi_gpu --num_processes 2 examples/data_parallel.py

A launcher without GPUs takes gloo. If a process dies, the launcher ends the others; the same command continues.
"""

from __future__ import annotations

import stochprune as sp
from stochprune.runs import ranks


def main() -> tuple[float, float]:
    """Return the test error in per cent and the sparsity, after the cut; the same on all ranks."""
    data = sp.data.digits()
    batches = sp.data.Batches(data.train_x, data.train_y, batch_size=64)  # of all ranks together
    model = sp.models.build("lenet_300_100", data.shape, data.num_classes, seed=0)
    with ranks.joined():
        sp.training.train_weights(model, batches, sp.training.WeightConfig(epochs=5))
        sp.convert(model, sp.masks.from_scores(sp.scores.magnitude(model), 0.9))
        sp.finetune(model, batches, sp.FinetuneConfig(epochs=5, budget_schedule="cubic", sparsity=0.9), out="runs")
        pruned = sp.harden(model, sparsity=0.9).eval()
        error = sp.training.error(pruned(data.test_x), data.test_y)
        sparsity = sp.masks.sparsity(sp.masks.of(pruned))
        if ranks.is_first():
            print(f"{ranks.count()} ranks: test error {error:.2f} %, sparsity {sparsity:.3f}")
    return error, sparsity


if __name__ == "__main__":
    main()
