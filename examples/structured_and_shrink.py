"""Prune whole filters of a convolutional network, then remove them: a smaller, faster model.

    python examples/structured_and_shrink.py

The network reads the handwritten digits of scikit-learn (`pip install '.[studies]'`). Half of the filters inside each
residual block go. A filter that is only zero costs as much as any other; `sp.shrink` builds the model without it.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

import stochprune as sp


def error(model: nn.Module, data: sp.data.Dataset) -> float:
    """Return the test error in per cent."""
    with torch.no_grad():
        return 100 * (model.eval()(data.test_x).argmax(1) != data.test_y).double().mean().item()


def milliseconds(model: nn.Module, x: torch.Tensor) -> float:
    """Return the median time of a forward pass."""
    times = []
    with torch.inference_mode():
        for _ in range(10):
            start = time.perf_counter()
            model.eval()(x)
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    torch.set_num_threads(1)
    data = sp.data.digits()
    batches = sp.data.Batches(data.train_x, data.train_y, batch_size=64, seed=0)
    model = sp.models.resnet20(1, data.num_classes, width=8, seed=0)
    sp.training.train_weights(model, batches, sp.training.WeightConfig(epochs=3))
    print(f"dense: {error(model, data):.1f} % error")

    # Filters of small norm start as pruned. Fine-tuning may exchange them; the number that is kept stays.
    filters = {f"{name}.weight": layer.weight for name, layer in model.named_modules() if name.endswith(".conv1")}
    norms = {name: weight.detach().flatten(1).norm(dim=1) for name, weight in filters.items()}
    kept = sp.masks.from_scores(norms, sparsity=0.5, scope="layer")
    masks = {name: kept[name].view(-1, 1, 1, 1).expand_as(weight) for name, weight in filters.items()}
    sp.convert(model, masks, pattern="rows")
    sp.finetune(model, batches, sp.FinetuneConfig(epochs=2))
    sp.harden(model, sparsity=0.5, scope="layer")
    print(f"half of the filters pruned: {error(model, data):.1f} % error")

    smaller = sp.shrink(model, data.test_x[:2])

    report = smaller.shrink_report
    print(report)
    before, after = milliseconds(model, data.test_x), milliseconds(smaller, data.test_x)
    print(f"{len(data.test_x)} images: {before:.1f} ms before, {after:.1f} ms after")
    sp.training.train_weights(smaller, batches, sp.training.WeightConfig(epochs=3))
    print(f"after training the smaller model: {error(smaller, data):.1f} % error")


if __name__ == "__main__":
    main()
