"""DDP and pipelines in four processes: what one process computes on the whole batch."""

from __future__ import annotations

import copy
import io
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn.parallel import DistributedDataParallel

import stochprune as sp
from stochprune.training import GradualMagnitudeConfig, prune
from stochprune.training.batch_norm import recompute_statistics
from stochprune.training.training import Training
from tests.distributed.networks import assert_close, batch, gradients, loss, masks, mlp

PARTS = 4


def rank() -> int:
    return dist.get_rank()


def accumulate(parallel: nn.Module, x: torch.Tensor, steps: int) -> None:
    """Backward over ``steps`` shares of this process's batch; gradients are averaged with the last one."""
    for step, share in enumerate(x.chunk(steps)):
        with parallel.no_sync() if step < steps - 1 else nullcontext():
            (loss(parallel(share)) / steps).backward()


def updated(dropout: float = 0.0) -> nn.Module:
    """The network, with a low-rank update in one of its layers."""
    model = sp.nn.add_lora(mlp(), 3, dropout=dropout, include="0.weight", seed=1)
    model[0].lora_B.data += 0.5
    return model.requires_grad_()


def check_the_same_masks(folder: Path) -> None:
    """Two accumulated backward passes of four processes are two of one process, which have one mask each."""
    one, parallel = mlp(), DistributedDataParallel(mlp())
    x = batch(16)
    for half in x.chunk(2):
        (loss(one(half)) / 2).backward()
    own = torch.cat([half.chunk(PARTS)[rank()] for half in x.chunk(2)])
    accumulate(parallel, own, 2)
    assert_close(gradients(parallel.module), gradients(one))
    assert int(parallel.module[0].mask_draw) == int(one[0].mask_draw) == 2


def check_masks_of_its_own_in_each_process(folder: Path) -> None:
    """They are those of ``batched_samples`` in one process; accumulation uses the following draws."""
    one, parallel = updated(), DistributedDataParallel(sp.distributed.own_masks(updated()))
    x = batch(16)
    for _ in range(2):
        one.zero_grad(), parallel.zero_grad()
        with sp.nn.batched_samples(one, 2 * PARTS):  # parts of two rows: first those of the first backward pass
            loss(one(x)).backward()
        own = torch.cat([half.chunk(PARTS)[rank()] for half in x.chunk(2)])
        accumulate(parallel, own, 2)
        assert_close(gradients(parallel.module), gradients(one))
    state = parallel.module.state_dict()
    assert_close(state, one.state_dict(), tolerance=0.0)  # no step was made, and the counters agree

    resumed = updated()
    resumed.load_state_dict(state)
    resumed = sp.distributed.own_masks(resumed)
    with sp.nn.batched_samples(one, PARTS):
        y = one(x[:8])
    torch.testing.assert_close(resumed(x[:8].chunk(PARTS)[rank()]), y.chunk(PARTS)[rank()])
    with sp.nn.batched_samples(resumed, 2):
        z = resumed(x[:4])
    with sp.nn.batched_samples(one, 2 * PARTS):
        y = one(torch.cat([x[:4]] * PARTS))
    torch.testing.assert_close(z, y.chunk(PARTS)[rank()])


def check_each_process_drops_activations_of_its_own(folder: Path) -> None:
    """Shares of one length or another, of equal examples, of which the masks are the same."""
    copies = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "dp"))
    for wrap in (
        lambda model: DistributedDataParallel(sp.distributed.own_dropout(model)),
        lambda model: sp.distributed.shard(model, [model[2]]),
        lambda model: sp.distributed.shard(model, mesh=copies),
    ):
        parallel, ones, x = wrap(updated(0.5)), [updated(0.5) for _ in range(PARTS)], batch(2).repeat(3, 1)
        for model, number in zip(ones, range(PARTS), strict=True):
            model[0].mask_rank = number
        shares = [x[: 2 * (number % 3 + 1)] for number in range(PARTS)]
        want = [model(share) for model, share in zip(ones, shares, strict=True)]
        assert not any(torch.equal(want[i][:2], want[j][:2]) for i in range(PARTS) for j in range(i))
        found = parallel(shares[rank()])
        assert torch.equal(found, want[rank()])
        loss(found).backward(), (sum(map(loss, want)) / PARTS).backward()
        each = [gradients(model) for model in ones]
        assert_close(gradients(getattr(parallel, "module", parallel)), {n: sum(g[n] for g in each) for n in each[0]})
        for model in (parallel.eval(), ones[0].eval()):
            with sp.nn.sampling(model):
                want.append(model(x))
        assert torch.equal(want[-1], want[-2])  # what is measured is one network


def check_files_and_copies_are_those_of_one_process(folder: Path) -> None:
    own, one, x = sp.distributed.own_masks(updated(0.5)), updated(0.5), batch()
    own(x)
    one.load_state_dict(own.state_dict())
    file = io.BytesIO()
    torch.save(own, file)
    files: list[bytes] = [b""] * PARTS
    dist.all_gather_object(files, file.getvalue())
    assert len({*files}) == 1
    copied, loaded = copy.deepcopy(own), torch.load(io.BytesIO(files[-1]), weights_only=False)
    for _ in range(2):
        y = one(x)
        assert torch.equal(loaded(x), y) and torch.equal(copied(x), y)


def check_evaluation_and_the_switch(folder: Path) -> None:
    one, own = mlp(), sp.distributed.own_masks(mlp())
    one.eval(), own.eval()
    with sp.nn.sampling(one), sp.nn.sampling(own):
        assert torch.equal(own(batch()), one(batch()))
    one.train(), sp.distributed.own_masks(own, False).train()
    assert torch.equal(own(batch()), one(batch()))
    with pytest.raises(ValueError, match="Linear"):
        sp.distributed.own_masks(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Sequential"):
        sp.distributed.own_dropout(mlp())


def check_own_masks_of_groups_beside_tensor_parallelism(folder: Path) -> None:
    """Processes 0 and 1 hold parts of one layer, so they share masks; 2 and 3 have others."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    one, own = mlp(), sp.distributed.own_masks(mlp(), group=mesh.get_group("dp"))
    with sp.nn.batched_samples(one, 2):
        y = one(batch())
    torch.testing.assert_close(own(batch().chunk(2)[mesh.get_local_rank("dp")]), y.chunk(2)[mesh.get_local_rank("dp")])


def check_own_masks_with_fsdp(folder: Path) -> None:
    one, split = mlp(), sp.distributed.own_masks(mlp())
    sp.distributed.shard(split, [split[2]])
    for _ in range(2):
        one.zero_grad(), split.zero_grad()
        with sp.nn.batched_samples(one, PARTS):
            loss(one(batch())).backward()
        loss(split(batch().chunk(PARTS)[rank()])).backward()
        assert_close(gradients(split), gradients(one))


def check_sparsity_and_scores(folder: Path) -> None:
    """Scores are means over the examples of all processes; a budget finds the same shift in each."""
    one, x = mlp(), batch()
    y = torch.arange(8) % 4
    want = sp.scores.snip(one, nn.functional.cross_entropy, [(x, y)] * 1)
    share = slice(2 * rank(), 2 * rank() + 2)
    found = sp.scores.snip(mlp(), nn.functional.cross_entropy, [(x[share], y[share])])
    assert_close(found, want)
    parallel = DistributedDataParallel(sp.distributed.own_masks(mlp()))
    budgets = sp.Budget(one, 0.7), sp.Budget(parallel.module, 0.7)
    for model, budget, given in ((one, budgets[0], x), (parallel, budgets[1], x[share])):
        with sp.nn.batched_samples(one, PARTS) if model is one else nullcontext():
            loss(model(given)).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        budget.step()
    assert_close(dict(parallel.module.named_parameters()), dict(one.named_parameters()))
    assert budgets[1].end_epoch()["flipped"] == budgets[0].end_epoch()["flipped"]
    kept = torch.tensor([budgets[1].kept()], dtype=torch.float64)
    everywhere = [torch.empty_like(kept) for _ in range(PARTS)]
    dist.all_gather(everywhere, kept)
    assert all(torch.equal(each, kept) for each in everywhere)


def normed() -> nn.Sequential:
    """A plain network with batch norm."""
    with torch.random.fork_rng([]):
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


def check_batch_norm_after_a_cut(folder: Path) -> None:
    """The statistics are the means over the batches of all processes, also of unequal numbers."""
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(4, 6, generator=generator), torch.arange(4)) for _ in range(PARTS + 2)]
    first, more = batches[:PARTS], batches[PARTS:]
    own = [first[rank()], *(more if rank() == 0 else [])]
    model = DistributedDataParallel(normed())
    prune(model, own[:1], GradualMagnitudeConfig(sparsity=0.5, epochs=1))
    one = copy.deepcopy(model.module)
    recompute_statistics(one, first, Training())
    assert_close(model.module.state_dict(), one.state_dict())
    recompute_statistics(model, own, Training())
    recompute_statistics(one, batches, Training())
    assert_close(model.module.state_dict(), one.state_dict())


def check_pipelines(folder: Path) -> None:
    """A stage keeps the streams of its layers, and each microbatch has the next mask, as a backward pass of its own.

    With the shapes of a microbatch; without them torch infers these by a forward pass, which takes a draw.
    """
    widths = [6, 8, 8, 8, 4]
    shapes = [torch.empty(2, width, requires_grad=width != 6) for width in widths[rank() : rank() + 2]]
    for kind in (ScheduleGPipe, Schedule1F1B):
        one, part = mlp(), mlp()[rank()]
        stage = PipelineStage(part, rank(), PARTS, torch.device("cpu"), input_args=shapes[0], output_args=shapes[1])
        schedule = kind(stage, n_microbatches=4, loss_fn=lambda y, target: loss(y))
        for _ in range(2):
            one.zero_grad(), part.zero_grad()
            given = (batch(),) if rank() == 0 else ()
            schedule.step(*given, target=batch(), losses=[])
            with sp.nn.batched_samples(one, 4):
                loss(one(batch())).backward()
            assert_close(gradients(part), gradients(one[rank()]))
        assert_close(masks(part, 9), masks(one[rank()], 9), tolerance=0.0)
