"""MaskCallback: the budget of a masked model in a Lightning Trainer."""

from __future__ import annotations

from typing import Any

from stochprune.extras import extra
from stochprune.integrations.budget_plan import BudgetHolder, measured
from stochprune.integrations.own_dropout import own_dropout
from stochprune.training.in_backward import check_in_backward

with extra("loops", "MaskCallback"):
    from lightning.pytorch import Callback, LightningModule, Trainer


class MaskCallback(BudgetHolder, Callback):
    """Holds the budget of the masked layers of a ``LightningModule`` after each optimiser step::

        def configure_optimizers(self):
            return torch.optim.AdamW(sp.parameter_groups(self.model, lr=1e-3, logit_lr=0.1))

        lightning.Trainer(callbacks=[MaskCallback(0.9, schedule="cubic", harden=True)]).fit(task, loader)

    At the end of each epoch it logs ``mean_keep``, ``expected_sparsity`` and ``flipped``, see
    :func:`stochprune.integrations.budget_plan.measured`, and warns if the mask does not change. Its state is in the
    checkpoints of the trainer. :func:`stochprune.training.step_in_backward` may make the optimiser.

    Under DDP each process drops activations of its own in layers with a low-rank update, see
    :func:`stochprune.distributed.own_dropout`.

    The arguments and attributes are those of :class:`stochprune.integrations.budget_plan.BudgetHolder`.

    Raises:
        ValueError: at the start of the training: see :class:`stochprune.Budget`; a cubic budget in a training of
            unknown length; clipping or accumulation with an optimiser that steps inside backward.
    """

    def __init__(self, sparsity: float | None = None, *, harden: bool = False, **plan: Any) -> None:
        super().__init__(sparsity, harden=harden, **plan)
        self._loaded: dict[str, Any] = {}
        self._steps = 0  # the optimiser steps that the budget has followed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer in trainer.optimizers:
            check_in_backward(
                "MaskCallback",
                optimizer,
                accumulate=trainer.accumulate_grad_batches,
                clip_norm=trainer.gradient_clip_val,
                fp16=trainer.precision == "16-mixed",
            )
        mesh = getattr(trainer.strategy, "device_mesh", None)  # that of ModelParallelStrategy
        own_dropout(pl_module, tensor_parallel=mesh is not None and mesh["tensor_parallel"].size() > 1)
        steps = trainer.estimated_stepping_batches
        if self.plan.schedule == "cubic" and not 0 < steps < float("inf"):
            raise ValueError(f"MaskCallback: schedule cubic needs a training of known length, got {steps} steps")
        self.budget, self._steps = self.plan.make(pl_module, int(min(steps, 1 << 62))), trainer.global_step
        if self._loaded:
            self.budget.load_state_dict(self._loaded)
            self._loaded = {}  # the next training begins anew

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        assert self.budget is not None
        if trainer.global_step > self._steps:  # not within an accumulation
            self._steps = trainer.global_step
            self.budget.step()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.budget is not None
        epochs = trainer.max_epochs
        self.budget.end_epoch(None if epochs in (None, -1) else epochs - trainer.current_epoch - 1)
        pl_module.log_dict(measured(self.budget))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.prune(pl_module)  # after the last checkpoint

    def state_dict(self) -> dict[str, Any]:
        return {} if self.budget is None else self.budget.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict
