"""Ranks: the processes of one data-parallel run, as ``torchrun`` and ``accelerate launch`` start them.

Inside :func:`joined` all ranks run the same program on the same data. A training gives each rank its share of every
batch and adds the gradients up, so all ranks hold the same model. The first rank alone reads and writes files::

    with ranks.joined():
        finetune(model, loader, out="runs")  # one run, however many processes
        if ranks.is_first():
            print("done")

Outside the block, and in a single process, there is one rank, the first, and nothing is sent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")
TIMEOUT = "STOCHPRUNE_RANK_TIMEOUT"
"""The environment variable with the seconds after which a rank that does not answer is given up; 600 by default."""


class RankError(RuntimeError):
    """Another rank died or does not answer; the message names it. The last checkpoint is whole."""


@dataclasses.dataclass(frozen=True)
class _Ranks:
    rank: int = 0
    count: int = 1
    control: Any = None  # a gloo group: it can name a rank that does not answer, and it sends objects
    timeout: datetime.timedelta = datetime.timedelta(seconds=600)


_ranks = _Ranks()


def rank() -> int:
    """Return the number of this rank, from 0."""
    return _ranks.rank


def count() -> int:
    """Return the number of ranks."""
    return _ranks.count


def is_first() -> bool:
    """Return True on the rank that reads and writes files, and in a single process."""
    return _ranks.rank == 0


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Work as one rank of those that a launcher has started, while the block runs.

    The launcher sets WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. A process group that exists is used; if
    there is none, one is made, with gloo on CPUs and NCCL on GPUs. Without a launcher the block is a single process.

    Raises:
        ValueError: STOCHPRUNE_RANK_TIMEOUT is not a positive number.
        RankError: a rank does not come, or leaves.
    """
    global _ranks
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or _ranks.count > 1:
        yield
        return
    timeout, own = datetime.timedelta(seconds=_seconds()), not dist.is_initialized()
    if own and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    with _named("meet the other ranks"):
        if own:
            dist.init_process_group(timeout=timeout)
        control = dist.new_group(backend="gloo", timeout=timeout)
    _ranks = _Ranks(dist.get_rank(), dist.get_world_size(), control, timeout)
    try:
        with warnings.catch_warnings():
            if not is_first():  # all would say the same
                warnings.simplefilter("ignore")
            yield
        meet("end together")  # before the first rank closes the store that all use
        if own:
            dist.destroy_process_group()
    finally:
        _ranks = _Ranks()


def from_first(work: Callable[[], Value]) -> Value:
    """Run the work on the first rank; return its result, or raise its error, on all of them."""
    if _ranks.count == 1:
        return work()
    found: list[Any] = [None, None]
    if is_first():
        try:
            found[0] = work()
        except Exception as error:  # all ranks must end alike
            found[1] = error
    with _named("get what the first rank read"):
        dist.broadcast_object_list(found, src=0, group=_ranks.control)
    if found[1] is not None:
        raise found[1]
    return found[0]


def meet(what: str) -> None:
    """Wait for all ranks; on the first one, the error names those that do not come, to do ``what``."""
    if _ranks.count > 1:
        with _named(what):
            dist.monitored_barrier(_ranks.control, _ranks.timeout, wait_all_ranks=True)


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their sums over the ranks; each rank gives as many, of the same shapes."""
    if _ranks.count > 1:
        with _named("add up gradients"):
            for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()


def from_all(value: Value) -> list[Value]:
    """Return the values of all ranks, in their order."""
    found: list[Any] = [value] * _ranks.count
    if _ranks.count > 1:
        with _named("get what all ranks found"):
            dist.all_gather_object(found, value, group=_ranks.control)
    return found


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Raise :class:`RankError` for an error of torch.distributed, whose classes are all RuntimeErrors."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise RankError(
            f"rank {dist.get_rank() if dist.is_initialized() else os.environ.get('RANK')} could not {what}: {reason}"
        ) from error


def _seconds() -> float:
    text = os.environ.get(TIMEOUT, "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise ValueError(f"{TIMEOUT} must be a positive number of seconds, got {text!r}")
    return seconds
