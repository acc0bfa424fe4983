"""Prune a network, save it in a small file, and run it with sparse products on a CPU.

    python examples/save_and_run_sparse.py

It trains a network of 1.1 million weights on the handwritten digits of scikit-learn, fine-tunes a mask, prunes 95 per
cent of the two large layers, and takes the weights that are left through a file to the sparse kernel.
"""

from __future__ import annotations

import copy
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import stochprune as sp

SPARSITY = 0.95


def build() -> nn.Module:
    """A network whose middle layer has 1024 x 1024 weights."""
    return sp.models.mlp((64, 1024, 1024, 10), seed=0)


def train(model: nn.Module, batches: sp.data.Batches, epochs: int) -> None:
    """Train all parameters, in a loop of one's own."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for x, y in batches:
            optimiser.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimiser.step()


def milliseconds(model: nn.Module, x: torch.Tensor) -> float:
    """The fastest of 50 calls."""
    times = []
    for _ in range(50):
        start = time.perf_counter()
        model(x)
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def main() -> None:
    torch.set_num_threads(1)
    data = sp.data.digits()
    batches = sp.data.Batches(data.train_x, data.train_y, batch_size=128, seed=0)
    model = build()
    train(model, batches, epochs=6)

    scores = sp.scores.magnitude(model, F.cross_entropy, batches)
    masks = sp.masks.from_scores(scores, SPARSITY, scope="layer")
    sp.convert(model, {name: mask for name, mask in masks.items() if mask.shape[0] > 10})  # not the output layer
    sp.finetune(model, batches, sp.FinetuneConfig(epochs=4))
    sp.harden(model, SPARSITY, scope="layer").eval()

    with tempfile.TemporaryDirectory() as folder:
        dense, sparse = Path(folder, "dense.pt"), Path(folder, "sparse.safetensors")
        torch.save(model.state_dict(), dense)
        sp.save_sparse(model, sparse)
        print(f"file: dense {dense.stat().st_size:,} bytes, sparse {sparse.stat().st_size:,} bytes")
        restored = sp.load_sparse(sparse, build()).eval()

    fast = sp.sparsify(copy.deepcopy(restored))
    print(fast)
    with torch.inference_mode():
        x, y = data.test_x, data.test_y
        for name, network in {"dense": restored, "sparse": fast}.items():
            error = 100 * float((network(x).argmax(1) != y).float().mean())
            times = ", ".join(f"{milliseconds(network, x[:n]):.3f} ms for {n}" for n in (1, 16))
            print(f"{name}: {error:.1f} % test error; examples: {times}")
        assert torch.equal(restored(x), model(x))
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    main()
