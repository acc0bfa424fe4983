"""accelerate: train from dense to 90 % sparse with gradient accumulation, and cut the mask. Needs accelerate."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

import stochprune as sp


def main() -> tuple[float, float]:
    """Return the test error in per cent and the sparsity, after the cut."""
    torch.manual_seed(0)
    data = sp.data.digits()
    loader = DataLoader(TensorDataset(data.train_x, data.train_y), batch_size=32, shuffle=True)
    model = sp.convert(sp.models.build("lenet_300_100", data.shape, data.num_classes, seed=0))

    accelerator = Accelerator(gradient_accumulation_steps=2)
    optimizer = torch.optim.AdamW(sp.parameter_groups(model, lr=1e-3, logit_lr=0.1, weight_decay=0.01))
    budget = sp.Budget(model, 0.9, schedule="cubic", steps=5 * len(loader))  # ten epochs of half as many steps
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    accelerator.register_for_checkpointing(budget)  # accelerator.save_state and load_state include it

    for epoch in range(15):
        for x, y in loader:
            with accelerator.accumulate(model):
                # accelerate divides the sum by the number of accumulated batches, so every term is scaled alike.
                loss = torch.nn.functional.cross_entropy(model(x), y) + budget.penalty()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                if accelerator.sync_gradients:
                    budget.step()
        numbers = budget.end_epoch()
        accelerator.print(f"epoch {epoch + 1}: {numbers}")

    pruned = sp.harden(accelerator.unwrap_model(model), sparsity=0.9).eval()
    outputs = pruned(data.test_x.to(accelerator.device))
    error, sparsity = sp.training.error(outputs, data.test_y), sp.masks.sparsity(sp.masks.of(pruned))
    accelerator.print(f"test error {error:.2f} %, sparsity {sparsity:.3f}")
    return error, sparsity


if __name__ == "__main__":
    main()
