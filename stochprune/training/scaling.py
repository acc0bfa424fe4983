"""scaling_plan: the memory of a rank and the bytes that it sends in a step, by counting, before anything runs.

Collectives are counted as rings send them. Of a tensor with S bytes on N ranks each rank sends::

    all-gather, reduce-scatter   S (N - 1) / N
    all-reduce                   2 S (N - 1) / N

``ddp``   every rank holds the model. Gradients are all-reduced once a step.
``fsdp``  FSDP2, one group for each block and one for the rest: every rank holds 1 / N of parameters, gradients and
          optimiser state. A block is gathered in the forward pass and again in the backward pass, the rest once, and
          gradients are reduce-scattered: all of this in each micro-batch.
``tp``    tensor parallelism: every rank holds 1 / N of each masked weight, and all of the rest. In each block the
          outputs of attention and of the MLP are all-reduced in the forward pass, again where it is recomputed, and the
          gradients of their inputs in the backward pass: all of this in each micro-batch.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol

from stochprune.runs.config import Config, at_least, option
from stochprune.training.memory_plan import BYTES, MemoryConfig, MemoryPlan, ModelSizes, memory_plan

Parallel = Literal["ddp", "fsdp", "tp"]


@dataclasses.dataclass(frozen=True)
class ScalingConfig(Config):
    """How a training is spread."""

    ranks: tuple[int, ...] = option((1,), "Numbers of GPUs, separated by commas, such as 8,16.", at_least(1))
    parallel: Literal["ddp", "fsdp", "tp"] = option(
        "fsdp", "ddp: copies of the model; fsdp: sharded parameters (FSDP2); tp: tensor parallelism."
    )


class BlockSizes(ModelSizes, Protocol):
    """Sizes of a model that this plan needs besides."""

    @property
    def blocks(self) -> int: ...  # number of its equal blocks
    @property
    def width(self) -> int: ...  # numbers that a block passes on for each token


@dataclasses.dataclass(frozen=True)
class ScalingPlan:
    """The plan of one rank.

    Attributes:
        memory: bytes by part, and the peak.
        sent: bytes that a rank sends in a step, by collective.
        sequences: in a step, over all ranks.
    """

    memory: MemoryPlan
    sent: dict[str, float]
    sequences: int


def scaling_plan(sizes: BlockSizes, config: MemoryConfig, *, ranks: int, parallel: Parallel) -> ScalingPlan:
    """Return the memory of a rank and the bytes that it sends.

    Args:
        sizes: of the model.
        config: of the training of one rank: ``batch_size`` and ``accumulation`` are those of a rank.
        ranks: at least 1.

    Raises:
        ValueError: quantised weights or a step inside backward of several ranks, whose collectives are not counted.
    """
    whole = memory_plan(sizes, config)
    if ranks == 1:
        return ScalingPlan(whole, {}, config.batch_size * config.accumulation)
    if config.in_backward or config.weights in ("int8", "nf4"):
        given = "in_backward" if config.in_backward else f"weights {config.weights}"
        raise ValueError(
            f"scaling_plan: {ranks} ranks need weights in fp32 or bf16 and no step in backward, got {given}"
        )
    share, sequences = (ranks - 1) / ranks, config.batch_size * config.accumulation
    gradients = _gradients(sizes, config, whole)
    if parallel == "ddp":
        return ScalingPlan(whole, {"all-reduce": 2 * share * gradients}, ranks * sequences)
    if parallel == "tp":
        return ScalingPlan(_split(sizes, config, whole, ranks), _sent_by_tp(sizes, config, share), sequences)
    rest = sizes.other * config.wide  # the root group; biases and norms of blocks count here too
    blocks = whole.weights - rest + whole.logits
    sent = {
        "all-gather": share * config.accumulation * (2 * blocks + rest),
        "reduce-scatter": share * config.accumulation * gradients,
    }
    return ScalingPlan(_sharded(sizes, config, whole, ranks), sent, ranks * sequences)


def _gradients(sizes: ModelSizes, config: MemoryConfig, whole: MemoryPlan) -> float:
    """Return the bytes of all gradients."""
    trained = whole.logits
    if config.mode == "joint":
        trained += whole.masked * BYTES[config.weights] + sizes.other * config.wide
    return trained


def _sharded(sizes: BlockSizes, config: MemoryConfig, whole: MemoryPlan, ranks: int) -> MemoryPlan:
    """Return the memory of a rank of FSDP2: its shards, and whole: two blocks, the gradients of one, and the rest."""
    rest = sizes.other * config.wide
    weights = (whole.weights - rest) / sizes.blocks
    logits, gradients = whole.logits / sizes.blocks, whole.gradients / sizes.blocks
    return dataclasses.replace(
        whole,
        weights=whole.weights / ranks,
        logits=whole.logits / ranks,
        gradients=whole.gradients / ranks,
        state=whole.state / ranks,
        temporary=whole.temporary + 2 * (weights + logits) + gradients + rest,
    )


def _split(sizes: ModelSizes, config: MemoryConfig, whole: MemoryPlan, ranks: int) -> MemoryPlan:
    """Return the memory of a rank of tensor parallelism; activations count whole, which is an upper bound."""
    rest = sizes.other * config.wide
    kept = 0.0 if config.mode == "frozen" else sizes.other / (whole.masked + sizes.other)  # trained on each rank
    return dataclasses.replace(
        whole,
        weights=(whole.weights - rest) / ranks + rest,
        logits=whole.logits / ranks,
        gradients=whole.gradients * (kept + (1 - kept) / ranks),
        state=whole.state * (kept + (1 - kept) / ranks),
        temporary=whole.temporary / ranks,
    )


def _sent_by_tp(sizes: BlockSizes, config: MemoryConfig, share: float) -> dict[str, float]:
    each = config.batch_size * config.sequence * sizes.width * config.wide
    times = (6 if config.checkpointing else 4) * sizes.blocks * config.accumulation
    return {"all-reduce": 2 * share * times * each}
