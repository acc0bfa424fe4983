"""DistributedDataParallel: every rank samples the same mask, and gradients of weights and logits are averaged."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import stochprune as sp
from stochprune.models import resnet20

STEPS = 2


def network() -> nn.Module:
    model = sp.convert(resnet20(1, 3, width=2, seed=1), keep_kept=0.6)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # whose statistics would be those of a rank's share
    return model


def batch(step: int) -> torch.Tensor:
    return torch.linspace(-1, 1, 4 * 64).view(4, 1, 8, 8).roll(step, 0)


def train(model: nn.Module, rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """State after some steps on this rank's share of the batches."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(STEPS):
        optimiser.zero_grad()
        model(batch(step)[rank::world_size]).square().mean().backward()
        optimiser.step()
    return model.state_dict()


def worker(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    try:
        parallel = DistributedDataParallel(network())
        train(parallel, rank, world_size)
        torch.save(parallel.module.state_dict(), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ranks_train_as_one_process_does(world_size):
    expected = train(network(), 0, 1)
    with tempfile.TemporaryDirectory() as folder:
        if world_size == 1:
            threads = torch.get_num_threads()
            worker(0, 1, folder)
            torch.set_num_threads(threads)
        else:
            torch.multiprocessing.spawn(worker, (world_size, folder), nprocs=world_size)
        states = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world_size)]
    for state in states:
        assert int(state["conv1.mask_draw"]) == STEPS
        for name, value in state.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    start = network().state_dict()
    assert not torch.equal(expected["fc.mask_logits"], start["fc.mask_logits"])


def test_a_copy_of_the_model_continues_with_the_same_masks():
    model = network()
    clone = copy.deepcopy(model)
    assert all(torch.equal(a, b) for a, b in zip(train(model, 0, 1).values(), train(clone, 0, 1).values(), strict=True))
