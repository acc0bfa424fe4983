"""MaskCallback: the budget of a masked model in a transformers.Trainer."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from stochprune.extras import extra
from stochprune.integrations.budget_plan import BudgetHolder, measured
from stochprune.integrations.own_dropout import own_dropout
from stochprune.runs.files import CheckpointError, Kinds, load_tensors, require, save_tensors
from stochprune.training.budget import Budget

with extra("hf", "stochprune.integrations.transformers"):
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState

START = "mask_start.pt"
"""The file beside a checkpoint with the masks at the start of the training."""
_TENSORS = {"prior": list, "kept_at_start": list}


class MaskCallback(BudgetHolder, TrainerCallback, ExportableState):
    """Holds the budget of a masked model after each optimiser step of a ``transformers.Trainer``::

        groups = sp.parameter_groups(model, lr=1e-5, logit_lr=0.1)
        callback = MaskCallback(0.5, schedule="cubic", harden=True)
        Trainer(model, args, train_dataset=..., optimizers=(AdamW(groups), None), callbacks=[callback]).train()

    Each log of the loss gets ``mean_keep``, ``expected_sparsity`` and ``flipped``, see
    :func:`stochprune.integrations.budget_plan.measured`. The budget's position is in the trainer's state. A resumed
    training continues it, whatever ``restore_callback_states_from_checkpoint`` is. The masks at the start, which
    ``flipped`` counts from, are in a file of the checkpoint's folder.

    Under DDP each process drops activations of its own in layers with a low-rank update, see
    :func:`stochprune.distributed.own_dropout`.

    :class:`stochprune.integrations.transformers.MaskTrainer` has a callback of this type of its own.

    The arguments and attributes are those of :class:`stochprune.integrations.budget_plan.BudgetHolder`.

    Raises:
        ValueError: at the start of the training, see :class:`stochprune.Budget`.
        CheckpointError: at the start of a resumed training: the checkpoint has no state of this callback, or a damaged
            one.
    """

    def state(self) -> dict[str, Any]:
        """Return the arguments and the position on the schedule, for the trainer's state."""
        numbers = {} if self.budget is None else self.budget.state_dict()
        position = {name: value for name, value in numbers.items() if name not in _TENSORS}
        args = {**dataclasses.asdict(self.plan), "harden": self.harden}
        return {"args": args, "attributes": {"position": position}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        split = getattr(model, "_tp_size", None) or getattr(args.parallelism_config, "tp_size", 1)
        own_dropout(model, tensor_parallel=split != 1)
        self.budget = self.plan.make(model, state.max_steps)
        if state.global_step:
            position = attributes_of(self, state, {"position": dict})["position"]
            self._resume(self.budget, position, folder_of(args, state) / START)

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        assert self.budget is not None
        self.budget.step()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.budget is not None and "loss" in kwargs["logs"]:
            add_to_log(measured(self.budget), state, kwargs["logs"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self.budget is not None
        self.budget.end_epoch(max(0, state.num_train_epochs - round(state.epoch or 0)))  # warns of a stuck mask

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.budget is not None:
            tensors = self.budget.state_dict()
            save_tensors(folder_of(args, state) / START, {name: tensors[name] for name in _TENSORS})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self.prune(model)

    def _resume(self, budget: Budget, position: dict[str, Any], path: Path) -> None:
        """Continue a budget from its position, and from the file of the masks at the start."""
        if path.exists():
            tensors = require(load_tensors(path), _TENSORS, path)
        elif self.plan.kind == "kl":
            raise CheckpointError(f"{path} is missing: it holds the probabilities that budget kl compares with")
        else:
            warnings.warn(f"{path} is missing, so flipped weights are counted from here on", stacklevel=2)
            tensors = {name: budget.state_dict()[name] for name in _TENSORS}
        try:
            budget.load_state_dict({**position, **tensors})
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path.parent} does not fit the model or its budget: {error}") from error


def attributes_of(callback: TrainerCallback, state: TrainerState, kinds: Kinds) -> dict[str, Any]:
    """Return the attributes that a callback saved in a trainer's state, of these types.

    Raises:
        CheckpointError: it saved none, or others.
    """
    name = type(callback).__name__
    saved = (state.stateful_callbacks or {}).get(name)
    if not isinstance(saved, dict) or "attributes" not in saved:
        raise CheckpointError(
            f"the checkpoint of step {state.global_step} was not written with one {name}: resume with the callbacks "
            "that the training began with"
        )
    return require(saved["attributes"], kinds, Path("trainer_state.json"))


def add_to_log(numbers: dict[str, float], state: TrainerState, logs: dict[str, float]) -> None:
    """Add numbers to a log, for the callbacks after this one and for the trainer's history."""
    logs.update(numbers)
    state.log_history[-1].update(numbers)


def folder_of(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the folder of the trainer's checkpoint at the present step."""
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
