"""What needs no other process: rankings without gathering, and refusals."""

from __future__ import annotations

import pytest
import torch

import stochprune as sp
from stochprune.masks.ranking import evenly, keep_highest
from stochprune.masks.select import _evenly
from tests.distributed.networks import mlp


@pytest.mark.parametrize("numbers", [[5], [3, 0, 7], [10, 10, 10], [1, 100, 17, 17]])
def test_equal_weights_are_shared_as_one_process_shares_them(numbers):
    positions = torch.arange(sum(numbers))
    owners = torch.repeat_interleave(torch.arange(len(numbers)), torch.tensor(numbers))
    for wanted in range(sum(numbers) + 1):
        kept = owners[positions[_evenly(positions, numbers)[:wanted]]]
        assert evenly(numbers, wanted) == torch.bincount(kept, minlength=len(numbers)).tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_digits_rank_as_numbers_do(dtype, generator):
    values = torch.randn(50, 40, generator=generator)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-40, -1e-40, 1e30, -1e30])
    scores = {
        "a": torch.cat([values, special.expand(10, -1).reshape(2, 40)]).to(dtype),
        "b": (values * 3).round().to(dtype),
    }
    for sparsity in (0.0, 0.01, 0.5, 0.77, 0.999):
        for ties in (None, {name: -value for name, value in scores.items()}):
            want = sp.masks.from_scores(scores, sparsity, ties=ties, allow_empty=True)
            found = keep_highest(scores, sparsity, ties)
            assert all(torch.equal(found[name], want[name]) for name in want)


def test_masks_of_its_own_need_a_process_group():
    for own, model in (
        (sp.distributed.own_masks, mlp()),
        (sp.distributed.own_dropout, sp.nn.add_lora(mlp(), 2, include="0.weight")),
    ):
        with pytest.raises(ValueError, match="init_process_group"):
            own(model)
    assert sp.distributed.own_masks(mlp(), False)[0].mask_ranks == 1


def test_hardened_state_without_processes_is_that_of_harden():
    model = mlp()
    found, want = sp.distributed.hardened_state(model, 0.5), sp.harden(model, 0.5).state_dict()
    assert found.keys() == want.keys() and all(torch.equal(found[name], want[name]) for name in want)


def test_a_folder_with_files_is_not_overwritten(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=tmp_path.name):
        sp.distributed.save_hardened(mlp(), tmp_path, 0.5)
