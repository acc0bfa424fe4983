"""Prune a network, export it to ONNX, and compare it with PyTorch.

    python examples/export_onnx.py

It needs the packages onnx, onnxscript and onnxruntime.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnxruntime
import torch

import stochprune as sp


def main() -> None:
    torch.set_num_threads(1)
    data = sp.data.digits()
    batches = sp.data.Batches(data.train_x, data.train_y, batch_size=64, seed=0)
    model = sp.models.build("lenet_300_100", data.shape, data.num_classes, seed=0)
    sp.training.train_weights(model, batches, sp.training.WeightConfig(epochs=5))

    scores = sp.scores.magnitude(model, torch.nn.functional.cross_entropy, batches)
    sp.convert(model, sp.masks.from_scores(scores, sparsity=0.8))
    sp.finetune(model, batches, sp.FinetuneConfig(epochs=3))
    sp.harden(model, sparsity=0.8).eval()  # plain torch layers, so that every exporter accepts the model

    x = data.test_x[:32]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        batch = torch.export.Dim("batch")
        torch.onnx.export(model, (x,), path, dynamo=True, verbose=False, dynamic_shapes=({0: batch},))
        session = onnxruntime.InferenceSession(path)
        (found,) = session.run(None, {session.get_inputs()[0].name: data.test_x.numpy()})
    with torch.no_grad():
        difference = (torch.from_numpy(found) - model(data.test_x)).abs().max().item()
    zeros = sum(int(weight.eq(0).sum()) for weight in model.parameters())
    print(f"{zeros} zeros in the file; ONNX Runtime and PyTorch differ by {difference:.1e} at most")
    assert difference < 1e-4


if __name__ == "__main__":
    main()
