"""``sp.distributed.shrink``: blocks with several owners, models that write buffers, processes that fail."""

from __future__ import annotations

import copy
import datetime
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

import stochprune as sp
from tests.distributed.networks import assert_close, batch
from tests.distributed.shrunk import Block, net, outputs, shrunk_net, split


class Shared(nn.Module):
    """Two blocks, the first of which is inside the second too, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(Block(), Counter())
        self.second = nn.Sequential(self.first[0], First(), nn.Linear(6, 6))
        self.layers = [self.first[0], self.second[2], self.second, self.first]
        self.tail = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.second(self.first(x)))


class First(nn.Module):
    def forward(self, x: tuple[Tensor, str]) -> Tensor:
        return x[0]


class Counter(First):
    """A module that adds to a buffer, changes another one's size, and sets a third."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("seen", torch.zeros(0))
        self.register_buffer("last", None)

    def forward(self, x: tuple[Tensor, str]) -> Tensor:
        self.calls += 1
        self.seen = torch.cat([self.seen, x[0][0]])
        self.last = x[0]
        return super().forward(x)


def check_blocks_inside_blocks_and_the_buffers_of_the_model(folder: Path) -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(4)
        plain = Shared()
    model = split(copy.deepcopy(plain))
    smaller = sp.distributed.shrink(model, batch())
    assert smaller.first[0] is smaller.second[0]
    assert smaller.first[0].up.out_features == 6
    for each in (model, smaller):
        counter = each.first[1]
        assert counter.calls == 0 and counter.seen.numel() == 0 and counter.last is None
    assert_close(outputs(smaller, batch()), outputs(plain, batch()))


def check_a_block_with_two_names(folder: Path) -> None:
    model = split(net())
    model.again = model.layers[0]
    smaller = shrunk_net(model)
    assert smaller.again is smaller.layers[0]
    assert_close(outputs(smaller, batch()), outputs(net(), batch()))


def check_a_process_that_fails_stops_the_others(folder: Path) -> None:
    group = dist.new_group(timeout=datetime.timedelta(seconds=3))
    model = split(net(), mesh=DeviceMesh.from_group(group, "cpu"))
    if dist.get_rank() == 0:
        with pytest.raises(ValueError, match="text"):
            sp.distributed.shrink(model, "text")
    else:
        with pytest.raises(RuntimeError, match=r"shrink: .*another"):
            sp.distributed.shrink(model, batch())
