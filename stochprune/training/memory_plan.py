"""memory_plan: the memory of mask fine-tuning by arithmetic, before anything is loaded.

The peak of a step is::

    weights + logits + optimiser state + activations and gradients + temporary memory of one layer

Backward frees activations while it writes gradients, so only the larger of the two counts. With accumulation the
gradients of earlier micro-batches stay while the next one runs, and both count.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, Protocol

from stochprune import patterns
from stochprune.functional import structured
from stochprune.runs.config import Config, at_least, option

BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "nf4": 0.516}
"""Bytes of a weight. NF4 has blocks of 64 weights, whose scales have eight bits."""
STATE = {
    "adamw": 8.0,
    "masked-adamw": 8.0,
    "adamw8bit": 2.04,
    "adamw4bit": 1.06,
    "lion8bit": 1.02,
    "adafactor": 0.02,
    "sgd": 0.0,
}
"""Bytes of the optimiser's state for each trained number, measured with torchao, bitsandbytes and torch."""
STEP = {"adamw": 8.0, "adafactor": 8.0}
"""Bytes of temporary memory for each number of the parameter in a step of the optimiser; others need none."""
DEQUANTISED = {"int8": 4.0, "nf4": 14.0}
"""The same where torchao dequantises a weight."""
ROUNDED = 10.0
"""The same of stochastic rounding: the parameter and its gradient in float32, and the result."""
MASKLLM = "maskllm"
"""A pattern for comparison: MaskLLM's six logits for four weights (Fang et al. 2024, arXiv 2409.17481)."""


@dataclasses.dataclass(frozen=True)
class MemoryConfig(Config):
    """The choices that determine the memory of mask fine-tuning.

    Raises:
        ValueError: quantised weights cannot be trained; a step inside backward excludes accumulation.
    """

    pattern: str = option("unstructured", "unstructured, n:m such as 2:4, rows, columns, 16x16, or maskllm to compare.")
    weights: Literal["fp32", "bf16", "int8", "nf4"] = option("bf16", "Dtype of the masked weights.")
    logits: Literal["fp32", "bf16"] = option("fp32", "Dtype of the logits; bf16 needs stochastic rounding.")
    optimizer: Literal["adamw", "masked-adamw", "adamw8bit", "adamw4bit", "lion8bit", "adafactor", "sgd"] = option(
        "adamw", "Optimiser; adamw and adafactor step one parameter at a time (foreach=False)."
    )
    mode: Literal["frozen", "joint"] = option("frozen", "frozen: train the logits only; joint: train the weights too.")
    in_backward: bool = option(False, "Make the optimiser's step inside backward, one parameter at a time.")
    checkpointing: bool = option(False, "Recompute the activations of each block (gradient checkpointing).")
    batch_size: int = option(1, "Sequences in a micro-batch.", at_least(1))
    sequence: int = option(2048, "Tokens in a sequence.", at_least(1))
    accumulation: int = option(1, "Micro-batches in a step.", at_least(1))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "joint" and self.weights in ("int8", "nf4"):
            raise ValueError(f"MemoryConfig: weights in {self.weights} cannot be trained, got mode joint; use bf16")
        if self.in_backward and self.accumulation > 1:
            raise ValueError(f"MemoryConfig: in_backward needs accumulation 1, got {self.accumulation}")

    @property
    def wide(self) -> float:
        """Bytes of a number in products, in activations and in parameters that are not masked."""
        return BYTES["fp32" if self.weights == "fp32" else "bf16"]


class ModelSizes(Protocol):
    """The sizes of a model that a plan needs."""

    @property
    def masked(self) -> tuple[tuple[int, int], ...]: ...  # rows and columns of each masked weight
    @property
    def other(self) -> int: ...  # numbers in all other parameters
    @property
    def largest_other(self) -> int: ...  # numbers in the largest of them
    def activations(self, config: MemoryConfig) -> float: ...  # bytes that a forward pass saves for backward


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes by part, and the peak of a step."""

    weights: float
    logits: float
    gradients: float
    state: float
    activations: float
    temporary: float
    masked: int  # number of masked weights
    together: bool  # True if activations and gradients add up

    @property
    def parts(self) -> dict[str, float]:
        """Return the bytes by part."""
        names = ("weights", "logits", "gradients", "state", "activations", "temporary")
        return {name: getattr(self, name) for name in names}

    @property
    def peak(self) -> float:
        """Return the peak of a step, in bytes."""
        both = (self.activations, self.gradients)
        moving = sum(both) if self.together else max(both)
        return self.weights + self.logits + self.state + self.temporary + moving


def memory_plan(sizes: ModelSizes, config: MemoryConfig) -> MemoryPlan:
    """Return the bytes of each part.

    Args:
        sizes: of the model, such as :class:`stochprune.language_models.model_sizes.LanguageModelSizes`.
        config: of the training.

    Raises:
        ValueError: a pattern that does not fit a weight.
    """
    masked = sum(rows * cols for rows, cols in sizes.masked)
    largest = max(rows * cols for rows, cols in sizes.masked)
    each = [logits_of(config.pattern, shape) for shape in sizes.masked]
    logit_bytes, weight_bytes = BYTES[config.logits], BYTES[config.weights]
    trained, gradients = sum(each), sum(each) * logit_bytes
    one = max(each) * logit_bytes
    if config.mode == "joint":
        trained += masked + sizes.other
        gradients += (masked + sizes.other) * weight_bytes
        one = max(one, max(largest, sizes.largest_other) * weight_bytes)
    # z * W, its gradient, W itself
    backward = config.wide + max(config.wide, logit_bytes) + DEQUANTISED.get(config.weights, 0.0)
    rounded = config.logits == "bf16" or (config.mode == "joint" and config.weights == "bf16")
    step = max(each) * (STEP.get(config.optimizer, 0.0) + rounded * ROUNDED)
    return MemoryPlan(
        weights=masked * weight_bytes + sizes.other * config.wide,
        logits=sum(each) * logit_bytes,
        gradients=one if config.in_backward else gradients,
        state=trained * STATE[config.optimizer],
        activations=sizes.activations(config),
        temporary=max(largest * backward, step),
        masked=masked,
        together=config.accumulation > 1,
    )


def logits_of(pattern: str, shape: tuple[int, int]) -> float:
    """Return the number of logits of a masked weight [rows, columns]."""
    rows, cols = shape
    if pattern == MASKLLM:
        return 1.5 * rows * cols
    if pattern == "unstructured":
        return rows * cols
    if ":" in pattern:
        patterns.check("MemoryConfig", *patterns.parse(pattern, "MemoryConfig"), cols)
        return rows * cols
    high, wide = structured.block_shape("MemoryConfig", pattern, shape)
    return (rows // high) * (cols // wide)


CHANGES: tuple[dict[str, Any], ...] = (  # in the order of their cost in quality and time
    {"in_backward": True, "accumulation": 1},
    {"weights": "bf16"},
    {"optimizer": "adamw8bit"},
    {"checkpointing": True},
    {"logits": "bf16"},
    {"batch_size": 1},
    {"optimizer": "adamw4bit"},
    {"weights": "int8"},
    {"mode": "frozen"},
    {"weights": "nf4"},
    {"optimizer": "adafactor"},
)


def changes_that_fit(sizes: ModelSizes, config: MemoryConfig, limit: float) -> dict[str, Any] | None:
    """Return the fields to change so that the peak is at most ``limit`` bytes; None if no changes suffice.

    A single change is preferred. Otherwise changes are taken in the order of :data:`CHANGES`, and then those dropped
    that are not needed.
    """
    for change in CHANGES:
        if _peak(sizes, config, change) <= limit:
            return _differences(config, change)
    taken: dict[str, Any] = {}
    for change in CHANGES:
        if _peak(sizes, config, taken | change) < _peak(sizes, config, taken):
            taken |= change
        if _peak(sizes, config, taken) <= limit:
            for name in [*taken]:
                fewer = {key: value for key, value in taken.items() if key != name}
                taken = fewer if _peak(sizes, config, fewer) <= limit else taken
            return _differences(config, taken)
    return None


def _peak(sizes: ModelSizes, config: MemoryConfig, change: dict[str, Any]) -> float:
    try:
        return memory_plan(sizes, dataclasses.replace(config, **change)).peak
    except ValueError:  # quantised weights in joint training
        return float("inf")


def _differences(config: MemoryConfig, change: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in change.items() if getattr(config, key) != value}
