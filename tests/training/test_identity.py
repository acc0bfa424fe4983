"""The identity of data and losses: other ones are refused by a run's folder, and nothing is drawn to tell."""

from __future__ import annotations

import functools
import random
import tracemalloc
from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from stochprune.data import Batches
from stochprune.runs import CheckpointError
from stochprune.training import FinetuneConfig, LoopOptions, WeightConfig, finetune, train_weights
from stochprune.training.identity import FIELDS, MOST, identity

X = torch.arange(600.0).reshape(100, 6) / 600
Y = torch.arange(100) % 3
OTHER = X.flip(0)


class Drawn(Dataset):
    """A data set of random changes: to read it uses up random numbers."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.rand(6) + random.random(), index % 3


class Stream(IterableDataset):
    def __iter__(self):
        return iter(TensorDataset(X, Y))


def weighted(outputs, targets, scale=1.0):
    return scale * F.cross_entropy(outputs, targets)


class Own:
    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, outputs, targets):
        return self.scale * F.cross_entropy(outputs, targets)


class Lazy(Mapping):
    """Reads its items when they are asked for."""

    def __len__(self) -> int:
        return 20

    def __iter__(self):
        return iter(range(20))

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.rand(6)


class Unfinished(DataLoader):
    def __init__(self) -> None:
        pass

    def __len__(self) -> int:
        raise NotImplementedError


class Labelled:
    """A class with the name of a lambda, as functools.update_wrapper makes."""

    __name__ = "<lambda>"

    def __call__(self, outputs, targets):
        return F.cross_entropy(outputs, targets)


DATA = {
    "Batches": lambda x: Batches(x, Y, 10),
    "DataLoader": lambda x: DataLoader(TensorDataset(x, Y), 10, shuffle=True),
    "Subset": lambda x: DataLoader(Subset(TensorDataset(x, Y), range(50)), 10),
    "ConcatDataset": lambda x: DataLoader(ConcatDataset([TensorDataset(x, Y)] * 2), 10),
    "list of pairs": lambda x: [*zip(x.split(10), Y.split(10), strict=True)],
    "list of mappings": lambda x: [{"x": part} for part in x.split(10)],
    "bfloat16": lambda x: Batches(x.bfloat16(), Y, 10),
    "arrays": lambda x: [(part.numpy(), 0) for part in x.split(10)],
    "arrays of another byte order": lambda x: [part.numpy().astype(">f4") for part in x.split(10)],
    "numbers of numpy": lambda x: DataLoader([(X, number) for number in x[:, 0].numpy()], 10),
    "floats": lambda x: DataLoader([(X, number) for number in x[:, 0].tolist()], 10),
    "range": lambda x: DataLoader(Subset(TensorDataset(X, Y), range(50) if x is OTHER else range(50, 100)), 10),
    "conjugated": lambda x: [torch.complex(x, x).conj()],
}


@pytest.mark.parametrize("name", DATA)
def test_other_examples_differ(name):
    make = DATA[name]
    assert identity(make(X)) == identity(make(X.clone()))
    assert identity(make(X)) != identity(make(OTHER))


def test_other_batches_and_lengths_differ():
    loaders = [Batches(X, Y, 10), Batches(X, Y, 11), Batches(X, Y, 10, seed=1), DataLoader(Drawn(20)), Stream()]
    loaders += [DataLoader(Drawn(30)), DataLoader(Stream(), 10), DataLoader(Stream(), 20), range(3), iter([1])]
    assert len({identity(loader) for loader in loaders}) == len(loaders)


def test_nothing_is_drawn():
    source = iter([(X, Y)])
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    for loader in (
        DataLoader(Drawn(20), shuffle=True),
        DataLoader(Stream()),
        source,
        map(str, [1]),
        DataLoader(Lazy()),
    ):
        identity(loader)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert len(list(source)) == 1


def test_losses():
    losses = [
        *(F.cross_entropy, F.multi_margin_loss, weighted, Own(1.0)),
        *(functools.partial(weighted, scale=scale) for scale in (2.0, 3.0)),
        *(functools.partial(F.cross_entropy, weight=weight) for weight in (torch.ones(3), torch.zeros(3))),
        *(nn.CrossEntropyLoss(label_smoothing=smooth) for smooth in (0.0, 0.1)),
        *(nn.CrossEntropyLoss(weight) for weight in (torch.ones(3), torch.zeros(3))),
        *(lambda o, y: 2 * F.cross_entropy(o, y), lambda o, y: 3 * F.cross_entropy(o, y)),
        lambda o, y: 2 * F.multi_margin_loss(o, y),
    ]
    assert len({identity([], loss) for loss in losses}) == len(losses)
    counted = Own(1.0)
    first = identity([], counted)
    counted.calls = 3  # its own state may change
    assert identity([], counted) == first
    loss = nn.CrossEntropyLoss()
    assert identity([], loss) == identity([], nn.CrossEntropyLoss().eval())


@pytest.mark.parametrize(
    "loader",
    [
        *(Unfinished(), [Unfinished()], [np.ones(2, np.longdouble)], [torch.tensor(1j).conj()], {1: X, "x": object()}),
        [torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)],
        [torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)],
    ],
)
def test_what_cannot_be_described_counts_by_its_type(loader):
    assert identity(loader) == identity(loader) != identity([])


def test_losses_of_unusual_types():
    losses = [
        torch.Tensor.dist,
        functools.cache(lambda o, y: 0),
        np.vectorize(lambda o, y: 0),
        Labelled(),
        Own(1.0).__call__,
    ]
    assert len({identity([], loss) for loss in losses}) == len(losses)


def test_an_array_on_disk_is_not_read_whole(tmp_path):
    path = tmp_path / "x.bin"
    data = np.memmap(path, np.float32, "w+", shape=(1 << 16, 256))  # 64 MiB
    tracemalloc.start()
    identity([data])
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_lists_share_the_rows_that_are_read():
    read = []

    class Counted(np.ndarray):
        def __getitem__(self, index):
            read.append(len(index))
            return np.asarray(self)[index]

    identity([[np.zeros((100, 2)).view(Counted) for _ in range(80)] for _ in range(80)])
    assert sum(read) == MOST * FIELDS


def tune(model, loader, folder, loss=F.cross_entropy, options=None):
    finetune(model, loader, FinetuneConfig(1), loss_fn=loss, out=folder, options=options)


def train(model, loader, folder, loss=F.cross_entropy, options=None):
    train_weights(model, loader, WeightConfig(1), loss_fn=loss, folder=folder, options=options)


@pytest.mark.parametrize("trainer", [tune, train])
def test_a_run_with_other_data_or_another_loss_is_refused(trainer, masked, dense, tmp_path):
    def model():
        return masked() if trainer is tune else dense

    start = {name: value.clone() for name, value in model().state_dict().items()}

    def run(*args, **kwargs):
        given = model()
        given.load_state_dict(start)
        trainer(given, *args, **kwargs)

    run(Batches(X, Y, 20), tmp_path)
    run(Batches(X, Y, 20), tmp_path)
    for loader, more in (
        (Batches(OTHER, Y, 20), {}),
        (Batches(X, Y.flip(0), 20), {}),
        (Batches(X, Y, 20), {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)}),
        (Batches(X, Y, 20), {"options": LoopOptions(forward_loss=lambda m, batch: m(batch[0]).mean())}),
    ):
        with pytest.raises(CheckpointError, match="data or loss"):
            run(loader, tmp_path, **more)


def test_a_dataloader_of_unknown_length_trains(masked):
    loader = DataLoader(Stream(), 20, generator=torch.Generator())
    assert len(finetune(masked(), loader, FinetuneConfig(2)).history) == 2
    with pytest.raises(ValueError, match="known length"):
        finetune(masked(), loader, FinetuneConfig(1, budget_schedule="cubic", sparsity=0.9))
