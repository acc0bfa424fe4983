"""What the scores share: which weights can be pruned, how a loss depends on them, and means over all examples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call

from stochprune.arguments import checked
from stochprune.data.pairs import pairs
from stochprune.nn import masked_layers

LossFunction = Callable[[Tensor, Tensor], Tensor]
Examples = Iterable[tuple[Tensor, Tensor]]

PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

Score = Callable[..., dict[str, Tensor]]
"""``(model, loss_fn, batches, **options)``. Scores without need of data take None for ``loss_fn`` and ``batches``."""


@checked
def prunable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of linear, convolutional and masked layers by qualified name, tied weights once.

    Subclasses of torch's layers do not count, since they may use their weight in another way; their instances under
    ``torch.nn.utils.parametrize`` neither, since their weight is no parameter.

    Raises:
        ValueError: there are none.
    """
    masked = masked_layers(model)
    weights: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        name = f"{module_name}.weight" if module_name else "weight"
        if (type(module) in PRUNABLE or name in masked) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            weights[name] = module.weight
    if not weights:
        raise ValueError(f"{type(model).__name__} has no linear, convolutional or masked layer to prune")
    return weights


def wide(tensor: Tensor) -> Tensor:
    """``tensor`` without its graph, in float64 if it is, else in float32."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def call(model: nn.Module, values: Mapping[Tensor, Tensor], x: Tensor) -> Tensor:
    """``model(x)`` with parameters and buffers (the keys) replaced by ``values``, the other buffers by copies.

    So neither weights nor running statistics nor draw counters change. The model is called in the mode it is in.
    """
    replacements: dict[int, Tensor] = {id(buffer): buffer.clone() for buffer in model.buffers()}
    replacements |= {id(tensor): value for tensor, value in values.items()}
    # Not torch's own tying: it leaves a module that has two names with the replaced tensors (pytorch #164759).
    return functional_call(model, _by_place(model, replacements), (x,), tie_weights=False)


def loss_at(model: nn.Module, loss_fn: LossFunction, values: Mapping[Tensor, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The loss of one batch, with a graph, where parameters (the keys) are ``values``; see :func:`call`."""
    device = next(iter(values)).device
    with torch.enable_grad():
        return loss_fn(call(model, values, x.to(device)), y.to(device))


def differentiate(loss: Tensor, by: Iterable[Tensor], create_graph: bool = False) -> tuple[Tensor, ...]:
    """The gradient of ``loss``; of a tensor that the loss does not reach it is 0."""
    with torch.enable_grad():
        return torch.autograd.grad(loss, list(by), create_graph=create_graph, allow_unused=True, materialize_grads=True)


def gradients(
    model: nn.Module, loss_fn: LossFunction, batches: Examples, masks: Mapping[str, Tensor] | None = None
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """For each batch its number of examples and the gradient of its loss by prunable weight.

    The model is called in the mode it is in, on copies of its buffers, with its weights detached: neither weights nor
    ``.grad`` nor ``requires_grad`` nor running statistics nor draw counters change.

    Args:
        masks: if given, the gradient is that at the masked weights, also for those pruned.
    """
    parameters = prunable_weights(model)
    weights = {name: weight.detach() for name, weight in parameters.items()}
    if masks is not None:
        weights = {name: torch.where(masks[name], weight, 0) for name, weight in weights.items()}
    values: dict[Tensor, Tensor] = {parameters[name]: weight.requires_grad_() for name, weight in weights.items()}
    for x, y in pairs(batches, "batches"):
        grads = differentiate(loss_at(model, loss_fn, values, x, y), values.values())
        yield len(x), dict(zip(weights, grads, strict=True))


def mean_over_examples(terms: Iterable[tuple[int, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """The mean of the batches' values, each by its number of examples, in float32 or wider.

    Under an initialised process group it is the mean over the examples of all ranks: every rank must take part, each
    with examples of its own, and all get the same.

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
    """``batches`` for several passes: what can be iterated once only becomes a list."""
    return list(batches) if isinstance(batches, Iterator) else batches


def needed(score: str, loss_fn: LossFunction | None, batches: Examples | None) -> tuple[LossFunction, Examples]:
    """Both, for a score that cannot do without.

    Raises:
        ValueError: one of them is None.
    """
    if loss_fn is None or batches is None:
        raise ValueError(f"{score} needs loss_fn and batches")
    return loss_fn, batches


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Inside, every module is in evaluation mode; after, each in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _by_place(model: nn.Module, replacements: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """The replacements of tensors, given by id, under the name of every place of theirs; each module counts once."""
    replaced = {}
    for prefix, module in model.named_modules():
        for members in (module.named_parameters, module.named_buffers):
            for name, tensor in members(prefix, recurse=False, remove_duplicate=False):
                if id(tensor) in replacements:
                    replaced[name] = replacements[id(tensor)]
    return replaced


def all_finite(score: str, scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """``scores``, all of them finite.

    Raises:
        ValueError: some are not; the message names the layer.
    """
    for name, value in scores.items():
        bad = int((~value.isfinite()).sum())
        if bad:
            raise ValueError(f"{score}: {bad} of {value.numel()} scores of {name} are NaN or infinite")
    return scores
