"""The message of MaskTrainer where the memory is full: the arguments that fit, from the memory plan."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from stochprune.integrations.transformers.arguments import MaskTrainingArguments
from stochprune.integrations.transformers.config import MaskConfig
from stochprune.nn.members import masked_layers, once
from stochprune.nn.without_masks import without_masks
from stochprune.quantised import is_quantised
from stochprune.training.activations import activation_bytes, checkpoint_blocks, saved_bytes
from stochprune.training.memory_plan import MemoryConfig, changes_that_fit, memory_plan
from stochprune.training.out_of_memory import ROOM, memory_of

OPTIMISERS = {
    "lion_8bit": "lion8bit",
    "8bit": "adamw8bit",
    "4bit": "adamw4bit",
    "adafactor": "adafactor",
    "sgd": "sgd",
}
"""Optimisers of the plan, by a part of the name in transformers; the first that fits. Others count as AdamW."""
ARGUMENTS = {  # by field and value of MemoryConfig
    "in_backward": "step_in_backward=True, max_grad_norm=0, gradient_accumulation_steps=1",
    "checkpointing": "gradient_checkpointing=True",
    "batch_size": "per_device_train_batch_size=1",
    "optimizer adamw8bit": "optim='adamw_torch_8bit'",
    "optimizer adamw4bit": "optim='adamw_torch_4bit'",
    "optimizer adafactor": "optim='adafactor'",
    "weights bf16": "weights in bfloat16",
    "weights int8": "frozen weights in int8 (docs/memory.md)",
    "weights nf4": "frozen weights in NF4 (docs/memory.md)",
    "logits bf16": "logits in bfloat16 with StochasticRounding (docs/memory.md)",
    "mode": "frozen weights",
}
Shapes = Mapping[str, tuple[torch.Size, torch.dtype]]


def memory_advice(model: nn.Module, args: MaskTrainingArguments, shapes: Shapes, device: torch.device) -> str:
    """Return which arguments of :class:`MaskTrainer` fit a device, from the plan of a step.

    Args:
        model: the masked model that was trained.
        shapes: shapes and dtypes of the inputs of the last micro-batch, by name.
    """
    limit = ROOM * memory_of(device)
    try:
        sizes = LiveSizes(model, shapes)
        config = _config(model, args, sizes.batch)
        needed = memory_plan(sizes, config).peak
        changes = changes_that_fit(sizes, config, limit)
    except Exception as error:  # models of any architecture, outputs of any kind
        return f"the memory of a step could not be planned: {type(error).__name__}: {error}"
    plan = f"the plan of a step is {needed / 1e9:.3g} GB of {limit / ROOM / 1e9:.3g}"
    if needed <= limit:
        plan += ", so something else fills the memory too"
    if not changes:
        return f"{plan}; no argument is enough: use shorter sequences or a smaller model"
    return f"{plan}; use {', '.join(_argument(*change) for change in changes.items())}"


def _argument(name: str, value: Any) -> str:
    return ARGUMENTS.get(name) or ARGUMENTS[f"{name} {value}"]


class LiveSizes:
    """Sizes of a masked model, see :class:`stochprune.training.memory_plan.ModelSizes`.

    Attributes:
        batch: sequences in the micro-batch with these shapes.
    """

    def __init__(self, model: nn.Module, shapes: Shapes) -> None:
        self.model, self.shapes = model, shapes
        layers = once(masked_layers(model))
        apart = {id(tensor) for layer in layers.values() for tensor in (layer.weight, layer.mask_logits)}
        others = [p.numel() for p in model.parameters() if id(p) not in apart]
        self.masked = tuple(shape for layer in layers.values() for shape in _matrices(layer.weight))
        self.other, self.largest_other = sum(others), max(others, default=0)
        self.batch = max((shape[0] for shape, _ in shapes.values() if shape), default=1)
        self._counted: dict[bool, float] = {}

    def activations(self, config: MemoryConfig) -> float:
        """Return the bytes that a forward pass of this batch size saves, and the gradient of the output's logits."""
        output = self.model.config.get_text_config()  # type: ignore[operator, union-attr]
        tokens = max((shape.numel() for shape, dtype in self.shapes.values() if dtype == torch.int64), default=1)
        wide = float(next(self.model.parameters()).element_size())
        whole = activation_bytes(self._saved, output, tokens, checkpointing=config.checkpointing, wide=wide)
        return whole * config.batch_size / self.batch

    def _saved(self, checkpointing: bool) -> float:
        if checkpointing not in self._counted:
            fake = FakeTensorMode()
            twins: dict[int, Any] = {id(tensor): fake.from_tensor(tensor) for tensor in self.model.buffers()}
            weights = {id(layer.weight) for layer in masked_layers(self.model).values()}
            for tensor in self.model.parameters():  # a masked layer saves its input, whatever is trained
                trained = tensor.requires_grad or id(tensor) in weights
                twins[id(tensor)] = nn.Parameter(fake.from_tensor(tensor.detach()), requires_grad=trained)
            with fake:
                model = copy.deepcopy(self.model, twins).train()
                if checkpointing:
                    checkpoint_blocks(model)
                device = next(model.parameters()).device
                inputs = {
                    name: torch.zeros(*shape, dtype=dtype, device=device)
                    for name, (shape, dtype) in self.shapes.items()
                }
                with without_masks(model):
                    self._counted[checkpointing] = saved_bytes(
                        lambda: model(**inputs), [*model.parameters(), *model.buffers()]
                    )
        return self._counted[checkpointing]


def _matrices(weight: Tensor) -> list[tuple[int, int]]:
    """Return rows and columns of a weight; each expert of a mixture is a matrix of its own."""
    count = len(weight) if weight.dim() == 3 else 1
    rows = weight.shape[1] if weight.dim() == 3 else len(weight)
    return [(rows, weight.numel() // (count * rows))] * count


def _config(model: nn.Module, args: MaskTrainingArguments, batch: int) -> MemoryConfig:
    layer = next(iter(masked_layers(model).values()))
    config = getattr(model.config, "quantization_config", None)
    pattern = "unstructured"
    if isinstance(config, MaskConfig):
        pattern = {"heads": "columns", "experts": "rows"}.get(config.pattern, config.pattern)
    joint = any(each.weight.requires_grad for each in masked_layers(model).values())
    name = str(getattr(args.optim, "value", args.optim))
    optimizer: Any = next((kind for part, kind in OPTIMISERS.items() if part in name), "adamw")
    return MemoryConfig(
        pattern=pattern,
        weights=_dtype(layer.weight),
        logits="fp32" if layer.mask_logits.element_size() >= 4 else "bf16",
        optimizer=optimizer,
        mode="joint" if joint else "frozen",
        in_backward=args.step_in_backward,
        checkpointing=args.gradient_checkpointing,
        batch_size=batch,
        accumulation=args.gradient_accumulation_steps,
    )


def _dtype(weight: Tensor) -> Any:
    if is_quantised(weight):
        return "nf4" if "nf4" in type(weight).__name__.lower() else "int8"
    return "fp32" if weight.element_size() >= 4 else "bf16"
