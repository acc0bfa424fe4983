"""Data parallelism over ranks: each takes its share of every batch, and the gradients are added up before a step.

There is no wrapper around the model, so hooks, callbacks and names are those of one process. All ranks sample the same
masks, which are addresses, and make the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from stochprune.data.batch_loss import inside, tensors_of
from stochprune.runs import ranks


def share(batch: Any) -> tuple[Any, float]:
    """Return the examples of a batch that this rank takes, and their fraction of the batch.

    A batch with fewer examples than ranks is taken whole by each, so that all of them sample its mask.

    Raises:
        TypeError: of several ranks: a batch whose tensors are not all of one length.
    """
    if ranks.count() == 1:
        return batch, 1.0
    sizes = {len(tensor) if tensor.dim() else 0 for tensor in tensors_of(batch)}
    if len(sizes) != 1:
        raise TypeError(
            f"train_loader: several ranks need batches of tensors [examples, ...], got lengths {sorted(sizes)}; "
            "use one process"
        )
    (size,) = sizes
    if size < ranks.count():
        return batch, 1 / ranks.count()
    first, end = (size * rank // ranks.count() for rank in (ranks.rank(), ranks.rank() + 1))
    return _rows(batch, slice(first, end)), (end - first) / size


def _rows(batch: Any, rows: slice) -> Any:
    return batch[rows] if isinstance(batch, Tensor) else inside(batch, lambda value: _rows(value, rows))


def add_up(model: nn.Module, losses: Sequence[float]) -> list[float]:
    """Add the gradients up over the ranks, and average running statistics; return the sums of losses.

    A parameter that the share of some ranks does not use, such as that of an expert, has the gradient 0 there.
    """
    if ranks.count() == 1:
        return [*losses]
    parameters = [*model.parameters()]
    used = [parameter.grad is not None for parameter in parameters]
    total = torch.tensor([*losses, *used], dtype=torch.float64, device=parameters[0].device)
    ranks.meet("add up gradients")  # once a step: it names a rank that hangs
    ranks.add_up([total])
    for parameter, users in zip(parameters, total[len(losses) :].tolist(), strict=True):
        if users and parameter.grad is None:  # else ranks would add up gradients of different parameters
            parameter.grad = torch.zeros_like(parameter)
    statistics = [
        tensor.div_(ranks.count())
        for module in model.modules()
        if isinstance(module, _NormBase) and module.training
        for tensor in (module.running_mean, module.running_var)
        if tensor is not None
    ]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    ranks.add_up([*gradients, *statistics])
    return total[: len(losses)].tolist()
