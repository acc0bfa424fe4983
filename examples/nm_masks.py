"""Prune a transformer to 2:4 masks: of each four neighbouring weights exactly two are kept.

    python examples/nm_masks.py

The network reads each handwritten digit of scikit-learn as 16 patches. GPUs of NVIDIA multiply 2:4 weights faster:
there `sp.nn.semi_structured(model)` stores them in torch's layout. On a CPU the zeros stay zeros.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import stochprune as sp


def error(model: nn.Module, data: sp.data.Dataset) -> float:
    """Test error in per cent."""
    with torch.no_grad():
        return 100 * (model.eval()(data.test_x).argmax(1) != data.test_y).double().mean().item()


def main() -> None:
    torch.set_num_threads(1)
    data = sp.data.digits()
    batches = sp.data.Batches(data.train_x, data.train_y, batch_size=64, seed=0)
    model = sp.models.vit(1, (8, 8), data.num_classes, patch=2, width=32, depth=2, heads=4, seed=0)
    sp.training.train_weights(model, batches, sp.training.WeightConfig(epochs=25))
    print(f"dense: {error(model, data):.1f} % error")

    scores = sp.scores.magnitude(model, F.cross_entropy, batches)
    linear = {name: score for name, score in scores.items() if "blocks" in name}  # the first and last layer stay dense
    sp.convert(model, sp.masks.n_of_m(linear, 2, 4), pattern="2:4")
    sp.finetune(model, batches, sp.FinetuneConfig(epochs=4))
    sp.harden(model)
    print(f"2:4: {error(model, data):.1f} % error")

    for name, layer in model.named_modules():
        if f"{name}.weight" in linear:
            kept = layer.weight.unflatten(1, (-1, 4)).ne(0).sum(2)
            assert kept.max() <= 2, name
            print(f"{name}: {layer.weight.eq(0).double().mean():.0%} zeros")


if __name__ == "__main__":
    main()
