"""A plain PyTorch loop: train a network from dense to 95 % sparse, cut its mask, train the weights that are left."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import stochprune as sp


def main() -> tuple[float, float]:
    """Return the test error in per cent and the sparsity."""
    torch.manual_seed(0)
    data = sp.data.digits()
    loader = DataLoader(TensorDataset(data.train_x, data.train_y), batch_size=64, shuffle=True)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )

    # Each weight gets its own probability of being kept, 0.95 at the start. The budget lowers their mean to 0.05.
    sp.convert(model)
    epochs = 15
    optimizer = torch.optim.AdamW(sp.parameter_groups(model, lr=1e-3, logit_lr=0.1, weight_decay=0.01))
    budget = sp.Budget(model, 0.95, schedule="cubic", steps=10 * len(loader))
    for epoch in range(epochs):
        for x, y in loader:
            loss = F.cross_entropy(model(x), y) + budget.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            budget.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, {budget.end_epoch()}")

    # The most probable weights stay, the others become exactly 0 and are held there.
    sp.harden(model, sparsity=0.95)
    masks = sp.masks.of(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(5):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            sp.masks.apply(model, masks)

    model.eval()
    error = 100 * (model(data.test_x).argmax(dim=1) != data.test_y).double().mean().item()
    print(f"test error {error:.2f} %, sparsity {sp.masks.sparsity(sp.masks.of(model)):.3f}")
    return error, sp.masks.sparsity(sp.masks.of(model))


if __name__ == "__main__":
    main()
