"""Scores under a process group: two processes with halves of the data, and one with all of it, agree."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from stochprune import masks, models, scores

WORKER = """
import sys
import torch
import torch.distributed as dist
import torch.nn.functional as F
from stochprune import models, scores

rank, out = int(sys.argv[1]), sys.argv[2]
data = torch.load(f"{out}/data.pt")
model = models.mlp((8, 12, 4), seed=0)
dist.init_process_group("gloo", rank=rank, world_size=2)
part = [batch for batch in data if batch[0].shape[0] and int(batch[0][0, 0] > 0) == rank]
result = {
    name: scores.compute(name, model, F.cross_entropy, part, sparsity=0.8, seed=0, **options)
    for name, options in {**SCORES, **EACH_ITS_OWN}.items()
}
torch.save(result, f"{out}/scores{rank}.pt")
dist.destroy_process_group()
"""
SCORES = {
    "snip": {},
    "grasp": {},
    "force": {"rounds": 4},
    "iterative_snip": {"rounds": 4},
    "wanda": {},
    "sparsegpt": {},
}
EACH_ITS_OWN = {"prospr": {"steps": 0}, "k_starts": {"starts": 2}, "dissipating_gradients": {}}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The batches, and the scores of rank 0 and rank 1; rank 0 has two batches of 6, rank 1 one of 5."""
    out = tmp_path_factory.mktemp("ranks")
    x = torch.randn(17, 8, generator=torch.Generator().manual_seed(0))
    x[:, 0] = x[:, 0].abs() * (torch.arange(17) >= 12).float().mul(2).sub(1)  # its sign says whose example it is
    data = list(zip(x.split([6, 6, 5]), (torch.arange(17) % 4).split([6, 6, 5]), strict=True))
    torch.save(data, out / "data.pt")
    (out / "worker.py").write_text(f"SCORES = {SCORES!r}\nEACH_ITS_OWN = {EACH_ITS_OWN!r}\n{WORKER}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    root = str(Path(__file__).parents[2])
    ranks = [
        subprocess.Popen(
            [sys.executable, str(out / "worker.py"), str(rank), str(out)], env={**os.environ, **place}, cwd=root
        )
        for rank in (0, 1)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    return data, [torch.load(out / f"scores{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", list(SCORES))
def test_two_processes_score_as_one(both, name):
    data, ranks = both
    model = models.mlp((8, 12, 4), seed=0)
    alone = scores.compute(name, model, F.cross_entropy, data, sparsity=0.8, seed=0, **SCORES[name])
    for key, score in alone.items():
        assert torch.equal(ranks[0][name][key], ranks[1][name][key])
        assert torch.allclose(ranks[0][name][key], score, rtol=1e-4, atol=1e-6 * float(score.abs().max()))
    one, two = (masks.from_scores(found, 0.8) for found in (alone, ranks[0][name]))
    assert all(torch.equal(one[key], two[key]) for key in one)
    # a half of the examples alone gives something else
    half = scores.compute(name, model, F.cross_entropy, data[:2], sparsity=0.8, seed=0, **SCORES[name])
    assert not torch.allclose(half["fc1.weight"], alone["fc1.weight"], rtol=1e-2)


@pytest.mark.parametrize("name", list(EACH_ITS_OWN))
def test_ranks_that_train_on_their_own_agree(both, name):
    data, ranks = both
    model = models.mlp((8, 12, 4), seed=0)
    for key, score in ranks[0][name].items():
        assert torch.equal(score, ranks[1][name][key])
    if name == "prospr":  # without steps it is SNIP on the first batch of each rank
        expected = scores.snip(model, F.cross_entropy, [data[0], data[2]])
    elif name == "dissipating_gradients":  # the mean of what each rank alone would see
        alone = [scores.dissipating_gradients(model, F.cross_entropy, part) for part in (data[:2], data[2:])]
        expected = {key: (alone[0][key] + alone[1][key]) / 2 for key in alone[0]}
    else:
        return
    for key, score in expected.items():
        torch.testing.assert_close(ranks[0][name][key], score, rtol=1e-3, atol=1e-6)
