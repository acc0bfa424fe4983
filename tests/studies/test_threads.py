"""The number of threads for small networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import skip_init

from stochprune.studies.threads import few_threads


@pytest.fixture(autouse=True)
def three_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("width", "threads"), [(16, 1), (2048, 3)])
def test_a_small_network_gets_one_thread_until_the_block_ends(width, threads):
    model, x = nn.Sequential(skip_init(nn.Linear, width, width), nn.Dropout()), torch.ones(32, width)
    with pytest.raises(KeyError), few_threads(model, x):
        assert torch.get_num_threads() == threads
        raise KeyError
    assert torch.get_num_threads() == 3 and model.training and model[1].training


def test_batch_norm_keeps_its_statistics():
    model = nn.Sequential(skip_init(nn.Linear, 4, 4), nn.BatchNorm1d(4))
    with few_threads(model, torch.ones(8, 4)):
        assert model[1].num_batches_tracked == 0 and model[1].running_mean.eq(0).all()


def test_each_module_keeps_its_mode():
    model = nn.Sequential(skip_init(nn.Linear, 4, 4), nn.BatchNorm1d(4), nn.Dropout())
    model[1].eval()
    with few_threads(model, torch.ones(8, 4)):
        assert [module.training for module in model.modules()] == [True, True, False, True]


def test_the_user_decides(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with few_threads(skip_init(nn.Linear, 4, 4), torch.ones(2, 4)):
        assert torch.get_num_threads() == 3
