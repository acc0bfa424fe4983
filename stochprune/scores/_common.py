"""Helpers of the scores: the weights that can be pruned, gradients with respect to them, means over all examples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from stochprune.arguments import checked
from stochprune.data.batch_loss import BatchLoss, LossFunction, count_examples
from stochprune.masks import probabilities
from stochprune.nn.obstacles import find_obstacles
from stochprune.nn.selection import Selectors, check_patterns, maskable_weights, wanted
from stochprune.nn.unmasked import warn_of_unmasked
from stochprune.shards import is_dtensor

Examples = Iterable[Any]
"""Batches of a kind that :class:`stochprune.data.BatchLoss` takes."""

Loss = LossFunction | BatchLoss | None
Data = Examples | None
"""Scores that need no data accept None for both."""

Result = TypeVar("Result")

Score = Callable[..., dict[str, Tensor]]
"""``(model, loss_fn, batches, **options)``, with None for ``loss_fn`` and ``batches`` where a score needs no data."""


@checked
def prunable_weights(
    model: nn.Module, include: Selectors | None = None, exclude: Selectors | None = None
) -> dict[str, nn.Parameter]:
    """Return the weights that :func:`stochprune.convert` masks and those that it has masked, by qualified name.

    Tied weights are listed once. Embeddings are left out, and so is what convert refuses: subclasses with a forward of
    their own, which may use their weight in another way, and weights that are computed (weight_norm and others). A
    layer that has the weight of an embedding, such as the output layer of many language models, is left out unless
    ``include`` names it, or it is masked already.

    Args:
        include, exclude: name patterns or types, as in :func:`stochprune.convert`; a tied weight counts by the name
            that is listed.

    Raises:
        ValueError: the model has no such weights, a pattern fits no parameter, or the selectors choose none.
    """
    check_patterns(model, include, exclude)
    weights = maskable_weights(model)
    if not weights:
        raise ValueError(f"{type(model).__name__} has no linear, convolutional or masked layer to prune")
    tables = tables_of(model)
    chosen = {
        name: weight
        for name, weight in weights.items()
        if wanted(model, [name], include, exclude, default=id(weight) not in tables)
    }
    if not chosen and include is exclude is None:
        tied = ", ".join(weights)
        raise ValueError(f"{tied} share their weights with embeddings: name them in include to prune them")
    if not chosen:
        raise ValueError(f"include {include!r} and exclude {exclude!r} choose none of {', '.join(weights)}")
    return chosen


def scored_weights(
    op: str, model: nn.Module, include: Selectors | None, exclude: Selectors | None
) -> dict[str, nn.Parameter]:
    """Return :func:`prunable_weights` for the score ``op``; warn of weights without a score, such as experts."""
    weights = prunable_weights(model, include, exclude)
    warn_of_unmasked(model, list(weights.values()), include, exclude, find_obstacles(model), op)
    return weights


def tables_of(model: nn.Module) -> set[int]:
    """Return the ids of the weights of embeddings that are not masked."""
    return {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}


def wide(tensor: Tensor) -> Tensor:
    """Return ``tensor`` detached, in float64 if it is float64, else in float32."""
    return probabilities.wide(tensor.detach())


def with_values(model: nn.Module, values: Mapping[Tensor, Tensor], function: Callable[[nn.Module], Result]) -> Result:
    """Return ``function(model)`` with tensors (the keys) replaced by ``values``, and other buffers by copies.

    So weights, running statistics and draw counters do not change. The model is called in its present mode.

    Raises:
        ValueError: the model is split over processes.
    """
    if split := [name for name, parameter in model.named_parameters() if is_dtensor(parameter)]:
        raise ValueError(
            f"scores: {split[0]} is split over processes (a DTensor), where only magnitude and random work: compute "
            f"the other scores before the model is split"
        )
    replacements: dict[int, Tensor] = {id(buffer): buffer.clone() for buffer in model.buffers()}
    replacements |= {id(tensor): value for tensor, value in values.items()}
    # Not torch's own tying: it leaves a module that has two names with the replaced tensors (pytorch #164759).
    found: Result = functional_call(_Applied(model, function), _by_name(model, replacements), (), tie_weights=False)
    return found


class _Applied(nn.Module):
    """A function of a model as a module, for ``functional_call``."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self) -> Any:
        return self.function(self.model)


def gradient_at(
    model: nn.Module,
    loss: BatchLoss,
    values: Mapping[Tensor, Tensor],
    batch: Any,
    number: int,
    by: Iterable[Tensor] | None = None,
    create_graph: bool = False,
) -> tuple[Tensor, ...]:
    """Return the gradient of the loss of one batch if parameters (the keys) are ``values``; see :func:`with_values`.

    The backward pass too runs while the model has these values, because activation checkpointing calls modules again.

    Args:
        by: the tensors of the gradient; default: the values.
        create_graph: whether the gradient will be differentiated, which torch's fused attention cannot be.

    Raises:
        RuntimeError: ``create_graph``, and the model uses activation checkpointing.
    """
    by = values.values() if by is None else by
    with torch.enable_grad(), _second_derivatives() if create_graph else contextlib.nullcontext():
        return with_values(
            model, values, lambda replaced: differentiate(loss(replaced, batch, number).loss, by, create_graph)
        )


@contextlib.contextmanager
def _second_derivatives() -> Iterator[None]:
    """Choose attention that can be differentiated twice; refuse activation checkpointing.

    The second derivative would call modules again when the model has other weights and other attention.
    """
    reason = (
        "scores: second derivatives do not work with activation checkpointing (or other hooks of saved tensors): "
        "switch it off, for models of transformers by model.activation_checkpointing_disable() (before version 5.20: "
        "gradient_checkpointing_disable)"
    )
    with sdpa_kernel(SDPBackend.MATH), torch.autograd.graph.disable_saved_tensors_hooks(reason):
        yield


def differentiate(loss: Tensor, by: Iterable[Tensor], create_graph: bool = False) -> tuple[Tensor, ...]:
    """Return the gradient of ``loss``; it is 0 for a tensor on which the loss does not depend."""
    with torch.enable_grad():
        return torch.autograd.grad(loss, list(by), create_graph=create_graph, allow_unused=True, materialize_grads=True)


def gradients(
    model: nn.Module,
    loss: BatchLoss,
    batches: Examples,
    parameters: Mapping[str, nn.Parameter],
    masks: Mapping[str, Tensor] | None = None,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield, for each batch, its number of examples and the gradient of its loss by weight name.

    The model is called in its present mode, on copies of its buffers, with its weights detached. So weights, ``.grad``,
    ``requires_grad``, running statistics and draw counters do not change.

    Args:
        parameters: the weights, as :func:`prunable_weights` returns them.
        masks: if given, the gradient is taken at the masked weights, for pruned weights too.
    """
    weights = {name: weight.detach() for name, weight in parameters.items()}
    if masks is not None:
        weights = {name: torch.where(masks[name], weight, 0) for name, weight in weights.items()}
    values: dict[Tensor, Tensor] = {parameters[name]: weight.requires_grad_() for name, weight in weights.items()}
    for number, batch in enumerate(batches):
        grads = gradient_at(model, loss, values, batch, number)
        yield count_examples(batch), dict(zip(weights, grads, strict=True))


def mean_over_examples(terms: Iterable[tuple[int, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """Return the mean of the batches' values, weighted by their numbers of examples, in float32 or wider.

    Under an initialised process group it is the mean over the examples of all ranks. Every rank must take part, each
    with its own examples, and all ranks get the same result.

    Raises:
        ValueError: there are no examples.
    """
    total: dict[str, Tensor] = {}
    examples = 0
    for size, values in terms:
        examples += size
        for name, value in values.items():
            term = wide(value) * size
            total[name] = total[name].add_(term) if name in total else term
    if not examples:
        raise ValueError("batches gave no examples")
    if dist.is_available() and dist.is_initialized():
        count = torch.tensor([examples], device=next(iter(total.values())).device)
        for tensor in (count, *(total[name] for name in sorted(total))):
            dist.all_reduce(tensor)
        examples = int(count)
    return {name: value.div_(examples) for name, value in total.items()}


def repeatable(batches: Examples) -> Examples:
    """Return ``batches`` for several passes: an iterator, which allows one pass only, becomes a list."""
    return list(batches) if isinstance(batches, Iterator) else batches


def needed(score: str, loss_fn: Loss, batches: Data) -> tuple[BatchLoss, Examples]:
    """Return the loss of a batch, and the batches, for a score that needs data.

    Raises:
        ValueError: there are no batches.
    """
    if batches is None:
        raise ValueError(f"{score} needs loss_fn, unless the model returns its loss, and batches")
    return batch_loss(score, loss_fn), batches


def batch_loss(score: str, loss_fn: Loss) -> BatchLoss:
    """Return the argument ``loss_fn`` of a score as the loss of a batch."""
    return loss_fn if isinstance(loss_fn, BatchLoss) else BatchLoss(loss_fn, argument=f"{score}: batches")


def _by_name(model: nn.Module, replacements: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """Return replacements, given by the id of a tensor, under every name in :class:`_Applied`; a module counts once."""
    replaced = {}
    for prefix, module in model.named_modules(prefix="model"):
        for members in (module.named_parameters, module.named_buffers):
            for name, tensor in members(prefix, recurse=False, remove_duplicate=False):
                if id(tensor) in replacements:
                    replaced[name] = replacements[id(tensor)]
    return replaced


def all_finite(score: str, scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``scores`` if all of them are finite.

    Raises:
        ValueError: some are not; the message names the layer.
    """
    for name, value in scores.items():
        bad = int((~value.isfinite()).sum())
        if bad:
            raise ValueError(f"{score}: {bad} of {value.numel()} scores of {name} are NaN or infinite")
    return scores
