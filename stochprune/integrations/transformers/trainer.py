"""MaskTrainer: transformers.Trainer for masked models."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stochprune.data.batch_loss import tensors_of
from stochprune.extras import extra
from stochprune.integrations.transformers.arguments import MaskTrainingArguments
from stochprune.integrations.transformers.callback import MaskCallback
from stochprune.integrations.transformers.memory import Shapes, memory_advice
from stochprune.integrations.transformers.skipped_steps import SkippedSteps
from stochprune.nn.without_masks import without_masks
from stochprune.training.distillation import distillation_loss
from stochprune.training.groups import WEIGHTS, parameter_groups
from stochprune.training.in_backward import check_in_backward, step_in_backward
from stochprune.training.mask_loss import mask_loss
from stochprune.training.out_of_memory import is_out_of_memory

with extra("hf", "stochprune.integrations.transformers"):
    from transformers import Trainer
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
    from transformers.trainer_utils import get_last_checkpoint

IGNORED = -100
"""The label of a position that does not count, as in transformers."""


class _NotFiniteError(Exception):
    """Leaves the training step of a micro-batch before its backward pass."""


class MaskTrainer(Trainer):
    """A ``transformers.Trainer`` that trains the masks of a converted model, with or without its weights::

        args = MaskTrainingArguments("out", sparsity=0.5, budget_schedule="cubic", learning_rate=1e-5, distillation=0.5)
        MaskTrainer(model, args, train_dataset=texts).train()

    The loss of a step is

        (1 - w) task + w T^2 KL(teacher || student) + mask_l0 E[kept] + mask_kl KL(masks || prior) + penalty

    with w the argument ``distillation``, T its temperature and the penalty that of the budget. The teacher is the same
    model in evaluation mode and without masks, so it needs no second copy. If the weights are trained too, the teacher
    has the present ones. The task and the distillation are means over the labels of a step, however these are split
    into micro-batches of unequal numbers of labels. The other terms count once a step. The task's loss of a
    micro-batch must be the mean over its labels, as it is in transformers.

    Each micro-batch has masks of its own, so accumulation over k of them averages the gradient over k masks.

    A step with a loss that is not finite changes no parameter, see ``max_skipped_steps``. The schedules of the learning
    rates and of the budget go on. A checkpoint continues bit for bit: the model has the draws of its masks, and the
    state of the trainer has the position of the budget.

    Args:
        prior_logits: of the prior of ``mask_kl``, see :func:`stochprune.mask_loss`: by weight name, or one number.
        args, kwargs: of ``transformers.Trainer``. ``optimizer_cls_and_kwargs`` gives another optimiser, such as
            ``(stochprune.MaskedAdamW, {"thresholds": False})``.

    Attributes:
        mask_callback: the :class:`MaskCallback`, which has the budget.

    Raises:
        TypeError: arguments that are not ``MaskTrainingArguments``.
        ValueError: a :class:`MaskCallback` in ``callbacks``, or several GPUs in one process; when the training begins,
            a model without masked layers, settings that ``step_in_backward`` excludes, or distillation of a model
            whose outputs have no ``logits``.
        FloatingPointError: too many losses in a row are not finite; the message has the reason.
        torch.OutOfMemoryError: the memory is full in training; the message has the arguments that fit, from the memory
            plan, and the last checkpoint. The model has the parameters of the last whole step.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the number of micro-batches where that is right
    args: MaskTrainingArguments
    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: nn.Module | None = None,
        args: MaskTrainingArguments | None = None,
        *,
        prior_logits: Mapping[str, Tensor | float] | float | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, MaskTrainingArguments):
            raise TypeError(f"MaskTrainer: args must be MaskTrainingArguments, got {type(args).__name__}")
        if any(isinstance(each, MaskCallback) for each in kwargs.get("callbacks") or ()):
            raise ValueError(
                "MaskTrainer: callbacks has a MaskCallback, but the trainer has one of its own: leave it out"
            )
        if args.n_gpu > 1:
            raise ValueError(
                f"MaskTrainer: one process has {args.n_gpu} GPUs, which is not supported: start a process for each GPU "
                "with torchrun, or show one with CUDA_VISIBLE_DEVICES"
            )
        super().__init__(model, args, **kwargs)
        self.prior_logits = prior_logits
        self._shapes: Shapes = {}  # of the last micro-batch
        plan = dataclasses.asdict(args.budget_plan())
        # First, so that the callbacks of loggers see their numbers.
        self.callback_handler.callbacks[:0] = [
            MaskCallback(**plan, harden=args.harden),
            SkippedSteps(args.max_skipped_steps),
        ]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as ``transformers.Trainer.train`` does; where the memory is full, say which arguments fit."""
        try:
            return super().train(*args, **kwargs)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            full = error
        # Outside of the block above, whose error keeps the activations of the step alive.
        self.model.zero_grad()
        full.__traceback__ = None
        model = self.accelerator.unwrap_model(self.model)
        advice = memory_advice(model, self.args, self._shapes, self.args.device)
        last = get_last_checkpoint(self.args.output_dir) if Path(self.args.output_dir).is_dir() else None
        saved = f"; then train(resume_from_checkpoint=True) continues from {last}" if last else ""
        raise torch.OutOfMemoryError(f"MaskTrainer: out of memory on {self.args.device}: {advice}{saved}") from full

    @property
    def mask_callback(self) -> MaskCallback:
        return self._callback(MaskCallback)

    def _callback(self, kind: type[Any]) -> Any:
        # Looked up, because a resumed training may replace its callbacks.
        return next(each for each in self.callback_handler.callbacks if isinstance(each, kind))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the optimiser: mask logits, weights that decay, and weights that do not, in groups of their own."""
        args = self.args
        if self.optimizer is None:
            model = self.model if model is None else model
            kind, settings = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(args, model)
            make = partial(kind, **settings)
            groups = self._groups(model)
            self.optimizer = step_in_backward(groups, make) if args.step_in_backward else make(groups)
        check_in_backward(
            "MaskTrainer",
            self.optimizer,
            accumulate=args.gradient_accumulation_steps,
            clip_norm=args.max_grad_norm,
            fp16=args.fp16,
        )
        return self.optimizer

    def _groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return weights that decay as in a ``Trainer``, weights that do not, and logits; logs have the first rate."""
        args, names = self.args, {*self.get_decay_parameter_names(model)}
        decaying = {id(parameter) for name, parameter in model.named_parameters() if name in names}
        groups: list[dict[str, Any]] = []
        for group in parameter_groups(model, args.learning_rate, logit_lr=args.logit_lr, weight_decay=0.0):
            if group["name"] == WEIGHTS:
                chosen = [parameter for parameter in group["params"] if id(parameter) in decaying]
                groups.insert(0, {**group, "params": chosen, "weight_decay": args.weight_decay})
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in decaying]
            groups.append(group)
        return sorted(filter(lambda group: group["params"], groups), key=lambda group: group["name"] != WEIGHTS)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a micro-batch: its part of the loss of a step in training, the task's in evaluation."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        given, own = {**inputs}, self.compute_loss_func is not None  # Trainer may take the labels out of the inputs
        # Some models, such as T5, take num_items_in_batch and do not use it. So their means are weighted here.
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch if own else None)
        share = self._share(given, num_items_in_batch)
        if not own:
            loss = loss * share if share else loss.nan_to_num() * 0.0  # the mean over no label is NaN
        if weight := self.args.distillation:
            divergence = self._counted(self._divergence(model, inputs, outputs), given)
            loss = (1 - weight) * loss + weight * divergence.sum() * (share / max(1, divergence.numel()))
        loss = loss + (self._price_of_masks() / self.current_gradient_accumulation_steps).to(loss)
        self._check_finite(loss, given)
        return (loss, outputs) if return_outputs else loss

    def _share(self, inputs: dict[str, Any], num_items: Tensor | int | None) -> float:
        """Return the weight of a mean over the labels of a micro-batch in the mean over those of the step."""
        if num_items is None:
            return 1 / self.current_gradient_accumulation_steps
        count = int((self._labels(inputs) != IGNORED).sum())
        if self.args.average_tokens_across_devices:  # num_items counts all processes, whose gradients are averaged
            count *= self.accelerator.num_processes // self.get_tp_size()
        return count / max(1, int(num_items))  # a step may have no label at all

    def _labels(self, inputs: dict[str, Any]) -> Any:
        """Return the labels that predictions are compared with, as ``Trainer`` counts them; None without labels."""
        if "shift_labels" in inputs or "labels" not in inputs:
            return inputs.get("shift_labels")
        return inputs["labels"][..., 1:] if self._shifts() else inputs["labels"]

    def _shifts(self) -> bool:
        """Return True if the label at a position is that of the prediction before it."""
        model = self.accelerator.unwrap_model(self.model)
        causal = LOSS_MAPPING.get(getattr(model, "loss_type", None)) is ForCausalLMLoss
        return causal and not model.config.is_encoder_decoder

    def _divergence(self, model: nn.Module, inputs: dict[str, Any], outputs: Any) -> Tensor:
        """Return the distillation loss of each prediction, [N] or [N, L]."""
        if getattr(outputs, "logits", None) is None:
            found = ", ".join(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
            raise ValueError(
                f"MaskTrainer: distillation is {self.args.distillation}, which compares the logits of model outputs; "
                f"those of {type(self.accelerator.unwrap_model(self.model)).__name__} have none, only {found}: set "
                "distillation to 0"
            )
        model.eval()
        with torch.no_grad(), without_masks(self.model):
            teacher = model(**inputs)
        model.train()
        return distillation_loss(outputs.logits, teacher.logits, temperature=self.args.distillation_temperature)

    def _counted(self, divergence: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Return the values at positions that have a label, as the task's loss counts them, [n]."""
        labels = self._labels(inputs)
        if "shift_labels" not in inputs and self._shifts():
            divergence = divergence[..., :-1]
        if labels is None or labels.shape != divergence.shape:
            return divergence.flatten()
        return divergence[labels != IGNORED]

    def _price_of_masks(self) -> Tensor:
        """Return the terms that count once a step, a float64 scalar."""
        args, budget = self.args, self.mask_callback.budget
        price = mask_loss(self.model, l0=args.mask_l0, kl=args.mask_kl, prior_logits=self.prior_logits)
        return price if budget is None else price + budget.penalty()

    def _check_finite(self, loss: Tensor, inputs: dict[str, Any]) -> None:
        finite = loss.detach().isfinite()
        if self.accelerator.num_processes > 1:  # all skip the step, or none
            finite = self.accelerator.gather(finite.reshape(1)).all()
        if not finite:
            skipped = self._callback(SkippedSteps)
            skipped.found(self.model, tensors_of(inputs), loss.item(), self.state.global_step)
            if self.accelerator.scaler is None:  # a gradient scaler (fp16) has to see the gradients that it skips
                raise _NotFiniteError

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Add the gradient of a micro-batch unless its loss is not finite; return its part of the loss of the step."""
        self._shapes = {name: (x.shape, x.dtype) for name, x in inputs.items() if isinstance(x, Tensor)}
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        except _NotFiniteError:
            return torch.full((), torch.nan, device=self.args.device)
