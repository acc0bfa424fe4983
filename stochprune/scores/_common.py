"""What the scores share: which weights can be pruned, and how a loss depends on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from stochprune.nn import masked_layers

LossFunction = Callable[[Tensor, Tensor], Tensor]
Examples = Iterable[tuple[Tensor, Tensor]]

PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Score(Protocol):
    """The signature of every score. Those without need of data take None for ``loss_fn`` and ``batches``."""

    def __call__(
        self, model: nn.Module, loss_fn: LossFunction | None = None, batches: Examples | None = None
    ) -> dict[str, Tensor]: ...


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


def gradients(model: nn.Module, loss_fn: LossFunction, batches: Examples) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """For each batch its number of examples and the gradient of its loss by prunable weight.

    The model is called in the mode it is in, on copies of its buffers, with its weights detached: neither weights nor
    ``.grad`` nor ``requires_grad`` nor running statistics nor draw counters change.
    """
    parameters = prunable_weights(model)
    weights = {name: weight.detach().requires_grad_() for name, weight in parameters.items()}
    copies = {id(parameter): weights[name] for name, parameter in parameters.items()}
    device = next(iter(weights.values())).device
    empty = True
    for x, y in batches:
        buffers = {id(buffer): buffer.clone() for buffer in model.buffers()}
        replaced = _by_place(model, {**copies, **buffers})
        with torch.enable_grad():
            # Not torch's own tying: it leaves a module that has two names with the replaced tensors (pytorch #164759).
            outputs = functional_call(model, replaced, (x.to(device),), tie_weights=False)
            loss = loss_fn(outputs, y.to(device))
        # A weight that the loss does not reach has gradient 0.
        grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
        empty = False
        yield len(x), dict(zip(weights, grads, strict=True))
    if empty:
        raise ValueError("batches gave no examples")


def _by_place(model: nn.Module, replacements: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """The replacements of tensors, given by id, under the name of every place of theirs; each module counts once."""
    replaced = {}
    for prefix, module in model.named_modules():
        for members in (module.named_parameters, module.named_buffers):
            for name, tensor in members(prefix, recurse=False, remove_duplicate=False):
                if id(tensor) in replacements:
                    replaced[name] = replacements[id(tensor)]
    return replaced


def checked(score: str, scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """``scores``, all of them finite.

    Raises:
        ValueError: some are not; the message names the layer.
    """
    for name, value in scores.items():
        bad = int((~value.isfinite()).sum())
        if bad:
            raise ValueError(f"{score}: {bad} of {value.numel()} scores of {name} are NaN or infinite")
    return scores
