"""Trainings in the processes that torch.distributed.run starts: ``distributed.py FOLDER NAME``."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import stochprune as sp
from tests.integrations import tiny
from tests.runs import owners

TERMS = {"distillation": 0.3, "mask_l0": 1e-4, "sparsity": 0.5, "budget_schedule": "cubic", "max_grad_norm": 0.0}


def masks(folder: Path, processes: int, rank: int) -> None:
    """Train on eight texts a step; the third loss is NaN in one process. Store the parameters and what was logged."""
    model, count = tiny.masked(), 0

    def broken(module, inputs, outputs):
        nonlocal count
        count += module.training
        return outputs * math.nan if module.training and count == 3 and rank == processes - 1 else outputs

    model.lm_head.register_forward_hook(broken)
    changes = {"per_device_train_batch_size": 8 // processes, "max_steps": 4, "train_sampling_strategy": "sequential"}
    trainer = tiny.trainer(folder, model, optim="sgd", **TERMS, **changes)
    trainer.train()
    logs = [{name: entry[name] for name in entry if name != "epoch"} for entry in trainer.state.log_history]
    torch.save([model.state_dict(), logs[:-1]], folder / f"{processes}-{rank}.pt")


def dropout(folder: Path, processes: int, rank: int) -> None:
    """Train updates on one text that all processes have; store the first outputs of a layer, and the parameters.

    Without dropout, with it, and with it from a checkpoint on.
    """
    for name, rate, resumed in (("without", 0.0, False), ("whole", 0.5, False), ("resumed", 0.5, True)):
        model, first = sp.nn.add_lora(tiny.masked(), 2, dropout=rate, include="*.q_proj.*", seed=7), []
        layer = model.model.layers[0].self_attn.q_proj
        nn.init.constant_(layer.lora_B, 0.5)

        def keep(module: nn.Module, inputs: object, outputs: Tensor, to: list[Tensor] = first) -> None:
            to.append(outputs.detach().clone())

        layer.register_forward_hook(keep)
        changes = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 1}
        trainer = tiny.trainer(folder / f"rate {rate}", model, data=tiny.texts(1) * 8, **changes)
        trainer.train(resume_from_checkpoint=str(folder / f"rate {rate}" / "checkpoint-2") if resumed else None)
        torch.save([first[0], model.state_dict()], folder / f"{name}-{rank}.pt")


def lightning(folder: Path, processes: int, rank: int) -> None:
    """Train updates on one batch that all processes have, in Lightning; store the first outputs of a layer."""
    import lightning

    from stochprune.integrations.lightning import MaskCallback

    class Task(lightning.LightningModule):
        def __init__(self, rate: float) -> None:
            super().__init__()
            self.model, self.found = sp.nn.add_lora(sp.convert(owners.dense(), seed=5), 2, dropout=rate, seed=7), []
            nn.init.constant_(self.model[0].lora_B, 0.5)

        def training_step(self, batch: list[Tensor], number: int) -> Tensor:
            x, y = batch
            self.found.append(self.model[0](x).detach())
            return nn.functional.cross_entropy(self.model(x), y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)

    for name, rate in (("without", 0.0), ("with", 0.5)):
        task, quiet = Task(rate), {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        batches = torch.utils.data.DataLoader(list(owners.loader()), batch_size=None)
        settings = {"accelerator": "cpu", "strategy": "ddp", "devices": processes, "use_distributed_sampler": False}
        lightning.Trainer(
            callbacks=[MaskCallback(0.5)], max_steps=1, enable_checkpointing=False, **settings, **quiet
        ).fit(task, batches)
        torch.save(task.found[0], folder / f"{name}-{rank}.pt")


if __name__ == "__main__":
    torch.manual_seed(0)
    place = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    {"masks": masks, "dropout": dropout, "lightning": lightning}[sys.argv[2]](Path(sys.argv[1]), *place)
