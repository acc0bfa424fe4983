"""Batch normalisation after a cut: the running statistics of the network that is left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from stochprune.runs import ranks
from stochprune.training.loop import Loader
from stochprune.training.training import Training, first_batches


def recompute_statistics(model: nn.Module, loader: Loader, training: Training) -> None:
    """Set the running statistics of batch norm to their means over the batches of the first epoch, in place.

    Running statistics follow the network in training. After sampled masks, or a cut, they are not those of the network
    that is left, whose error they can raise by many points. One pass in train mode, without backward, computes them
    again: the adaptive batch normalisation of Li et al. 2020, "EagleEye: fast sub-net evaluation for efficient neural
    network pruning" (arXiv 2007.02491).

    Frozen norms keep their statistics: those that stay in evaluation mode under ``model.train()``, and, in a model in
    train mode, those in evaluation mode. So do norms that no batch reaches. Without another norm there is no pass.

    Each rank of :mod:`stochprune.runs.ranks` takes whole batches, so all ranks get the statistics of one process. Under
    ``DistributedDataParallel`` they are the means over the batches of all processes, each with batches of its own.

    Raises:
        ValueError: the loader has no batches. After any error the statistics are those from before.
    """
    with _train_mode(model):
        norms = [
            module
            for module in model.modules()
            if isinstance(module, _BatchNorm) and module.track_running_stats and module.training
        ]
        if norms:
            _average(norms, model, loader, training)


def _average(norms: Sequence[_BatchNorm], model: nn.Module, loader: Loader, training: Training) -> None:
    """Run the model on all batches and leave the mean statistics in the norms that these reach."""
    batch_loss, number = training.options.batch_loss(training.loss_fn), -1
    before = [(norm.momentum, [buffer.clone() for buffer in norm.buffers(recurse=False)]) for norm in norms]
    # A loss may need gradients, such as a penalty of them. But a rank trains on its share of a batch, so the graph of a
    # whole batch may be too large for it.
    gradients = ranks.count() == 1 or training.options.forward_loss is not None
    unreached = [True] * len(norms)  # all of them after an error
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a mean, in which all batches weigh the same
        with _each_by_itself(model, norms), torch.set_grad_enabled(gradients):
            for number, batch in enumerate(first_batches(loader, 0)):
                batch_loss(model, batch, number)
        if number < 0:
            raise ValueError(
                "train_loader has no batches for the statistics of batch norm; an iterator can be used only once, give "
                "a list or a loader"
            )
        unreached = [not norm.num_batches_tracked for norm in norms]
    finally:
        for norm, (momentum, buffers), missed in zip(norms, before, unreached, strict=True):
            norm.momentum = momentum
            if missed:
                for buffer, old in zip(norm.buffers(recurse=False), buffers, strict=True):
                    buffer.copy_(old)


@contextlib.contextmanager
def _train_mode(model: nn.Module) -> Iterator[None]:
    """Set a model in evaluation mode to train mode inside the block, and restore each module's mode after it."""
    modes = {module: module.training for module in model.modules()}
    if not model.training:
        model.train()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def _each_by_itself(model: nn.Module, norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Keep ``DistributedDataParallel`` from copying statistics inside the block; average them when it ends."""
    wrappers = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    with contextlib.ExitStack() as stack:
        for wrapper in wrappers:
            stack.enter_context(wrapper.no_sync())
        yield
    for wrapper in wrappers:
        for norm in wrapper.modules():
            if norm in norms:
                _average_over_processes(norm, wrapper.process_group)


def _average_over_processes(norm: nn.Module, group: dist.ProcessGroup) -> None:
    """Replace statistics by their means over the batches of all processes; by NaN if no batch reached the norm."""
    buffers = dict(norm.named_buffers(recurse=False))
    count, *statistics = (buffers[name] for name in ("num_batches_tracked", "running_mean", "running_var"))
    sums = torch.cat([count[None].double(), *(count * statistic.double() for statistic in statistics)])
    dist.all_reduce(sums, group=group)  # [1 + 2 * features]
    count.copy_(sums[0])
    for statistic, mean in zip(statistics, sums[1:].div(sums[0]).chunk(2), strict=True):
        statistic.copy_(mean)
