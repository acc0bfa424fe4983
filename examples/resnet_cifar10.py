"""Prune ResNet-20 on CIFAR-10 and fine-tune its mask.

    python examples/resnet_cifar10.py --data-dir FOLDER     # the folder of cifar-10-batches-py; hours on a CPU
    python examples/resnet_cifar10.py                       # the same program on small digits, in seconds

With a GPU everything runs there.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn

import stochprune as sp


def error(model: nn.Module, data: sp.data.Dataset) -> float:
    """Test error in per cent."""
    with torch.no_grad():
        found = torch.cat([model.eval()(x).argmax(1) for x in data.test_x.split(500)])
    return 100 * (found != data.test_y).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune ResNet-20 and fine-tune its mask.")
    parser.add_argument("--data-dir", help="folder of cifar-10-batches-py; without it the digits are used")
    parser.add_argument("--epochs", type=int, default=0, help="epochs of each training; 0: 60 on CIFAR-10, 3 on digits")
    parser.add_argument("--sparsity", type=float, default=0.9, help="fraction of weights to prune")
    given = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = (sp.data.cifar10(given.data_dir) if given.data_dir else sp.data.digits()).to(device)
    epochs = given.epochs or (60 if given.data_dir else 3)
    batches = sp.data.Batches(data.train_x, data.train_y, batch_size=128, seed=0)
    model = sp.models.build("resnet20", data.shape, data.num_classes, seed=0).to(device)
    with sp.training.ProgressBar("dense") as bar:
        sp.training.train_weights(model, batches, sp.training.WeightConfig(epochs=epochs), callbacks=[bar])
    print(f"dense: {error(model, data):.2f} % error")

    with sp.training.ProgressBar("mask and weights") as bar:
        sp.prune_finetune(
            model,
            batches,
            given.sparsity,
            score="snip",
            config=sp.FinetuneConfig(epochs=epochs),
            loss_fn=F.cross_entropy,
            callbacks=[bar],
        )
    print(f"{given.sparsity:.0%} pruned: {error(model, data):.2f} % error")


if __name__ == "__main__":
    main()
