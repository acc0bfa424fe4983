"""Tensor parallelism in four processes: what one process computes, with the same masks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import stochprune as sp
from stochprune.distributed import MaskedColwiseParallel as Colwise
from stochprune.distributed import MaskedRowwiseParallel as Rowwise
from stochprune.shards import is_dtensor
from tests.distributed.networks import assert_close, batch, gradients, loss, masked, masks, mlp, whole

PLAN = {"0": Colwise(), "2.0": Rowwise(), "3": Colwise(output_layouts=Replicate())}


def same_as_one(one: nn.Module, split: nn.Module, x: torch.Tensor, part=lambda t: t) -> None:
    """Compare outputs, gradients, masks and KL in both modes; ``part`` gives a process's part of inputs and outputs."""
    for mode in (True, False):
        results = []
        for model, own in ((one.train(mode), lambda t: t), (split.train(mode), part)):
            model.zero_grad()
            given = own(x)
            given = given.clone().requires_grad_() if given.is_floating_point() else given
            y = model(given)
            (y.float() - torch.arange(y.shape[-1])).square().sum().backward()
            results.append((y, given.grad))
        (y, dx), (found, found_dx) = results
        assert_close({"y": found}, {"y": part(y)})
        if dx is not None:
            assert_close({"dx": found_dx}, {"dx": part(dx)})
        assert_close(gradients(split), gradients(one))
    assert_close(masks(split, 9), masks(one, 9), tolerance=0.0)
    prior = dict.fromkeys(sp.nn.masked_layers(one), 0.5)
    assert_close(sp.nn.layer_kl(split, prior), sp.nn.layer_kl(one, prior))


def check_columns_and_rows(folder: Path) -> None:
    """Also a width that four processes do not divide, for which the last one holds nothing."""
    mesh = init_device_mesh("cpu", (4,))
    for hidden in (8, 6):
        split = mlp(hidden)
        whole_ones = [*split.parameters()]  # that anything has them is no tie
        same_as_one(mlp(hidden), parallelize_module(split, mesh, PLAN), batch())
        assert not any(map(is_dtensor, whole_ones))


def check_sequence_parallel_inputs(folder: Path) -> None:
    mesh = init_device_mesh("cpu", (4,))
    plan = {"0": Colwise(input_layouts=Shard(1)), "2": Rowwise(output_layouts=Shard(1))}

    def make() -> nn.Module:
        return masked(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)))

    x = batch(3 * 8).view(3, 8, 6)
    same_as_one(make(), parallelize_module(make(), mesh, plan), x, lambda t: t.chunk(4, 1)[dist.get_rank()])


def check_n_of_m(folder: Path) -> None:
    mesh = init_device_mesh("cpu", (4,))

    def make() -> nn.Module:
        return masked(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)), pattern="2:4")

    same_as_one(make(), parallelize_module(make(), mesh, {"0": Colwise(), "2": Rowwise()}), batch(features=8))
    with pytest.raises(ValueError, match="2:4"):
        parallelize_module(make(), mesh, {"0": Rowwise()})  # 8 columns are 2 for each process


def check_embeddings(folder: Path) -> None:
    mesh = init_device_mesh("cpu", (4,))
    indices = torch.tensor([[0, 3, 9], [9, 1, 7]])

    def make() -> nn.Module:
        return masked(
            nn.Sequential(nn.Embedding(10, 8, padding_idx=3), nn.Linear(8, 3)), include=["0.weight", "1.weight"]
        )

    for style in (Colwise(output_layouts=Replicate()), Rowwise(input_layouts=Replicate())):
        same_as_one(make(), parallelize_module(make(), mesh, {"0": style}), indices)


def check_a_tied_weight_remains_one(folder: Path) -> None:
    mesh = init_device_mesh("cpu", (4,))

    def make() -> nn.Module:
        dense = nn.Sequential(nn.Embedding(10, 8), nn.ReLU(), nn.Linear(8, 10, bias=False))
        dense[2].weight = dense[0].weight
        return masked(dense)

    table, output = Rowwise(input_layouts=Replicate()), Colwise(output_layouts=Replicate())
    split = parallelize_module(make(), mesh, {"0": table, "2": output})
    same_as_one(make(), split, torch.tensor([[0, 3, 9], [9, 1, 7]]))
    assert split[0].mask_logits is split[2].mask_logits
    for plan, named in (({"0": table}, "2 is tied to 0"), ({"2": output}, "0 is tied to 2")):
        half = parallelize_module(make(), mesh, plan)
        with pytest.raises(ValueError, match=named):
            half(torch.tensor([[0, 3, 9]]))
    with pytest.raises(ValueError, match=r"tied.*Shard"):
        parallelize_module(make(), mesh, {"0": Colwise(), "2": output})
    with pytest.raises(ValueError, match="input_layouts"):
        parallelize_module(make(), mesh, {"0": Rowwise()})


def check_two_dimensions_with_fsdp(folder: Path) -> None:
    """Two groups of two processes: a group splits the model, and both split the batch."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    one, split = mlp(), parallelize_module(mlp(), mesh["tp"], PLAN)
    sp.distributed.shard(split, [split[2]], mesh=mesh["dp"])
    for _ in range(2):  # two masks
        one.zero_grad(), split.zero_grad()
        loss(one(batch())).backward()
        loss(split(batch().chunk(2)[mesh.get_local_rank("dp")])).backward()
        assert_close(gradients(split), gradients(one))
    assert_close(masks(split, 9), masks(one, 9), tolerance=0.0)


def check_budgets_and_cuts(folder: Path) -> None:
    """Of parts along rows and along columns, and of parts of parts; with steps inside backward and outside."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    one, split = mlp(), parallelize_module(mlp(), init_device_mesh("cpu", (4,)), PLAN)
    both = parallelize_module(mlp(), mesh["tp"], PLAN)
    sp.distributed.shard(both, [both[2]], mesh=mesh["dp"])
    models = [(one, batch()), (split, batch()), (both, batch().chunk(2)[mesh.get_local_rank("dp")])]
    budgets = [sp.Budget(model, 0.6) for model, _ in models]
    for (model, x), budget in zip(models, budgets, strict=True):
        groups, kind = sp.parameter_groups(model, lr=0.1), torch.optim.SGD
        optimizer = kind(groups) if model is one else sp.training.step_in_backward(groups, kind)
        for _ in range(2):
            optimizer.zero_grad()
            loss(model(x)).backward()
            optimizer.step()
            budget.step()
        assert_close(dict(model.named_parameters()), dict(one.named_parameters()))
        assert budget.end_epoch() == pytest.approx(budgets[0].end_epoch(), rel=1e-4, abs=1e-6)
    for scores in (
        [sp.scores.magnitude(model) for model, _ in models],
        [{n: 0 * v for n, v in sp.scores.magnitude(model).items()} for model, _ in models],  # positions decide
    ):
        want, *others = ({n: m.float() for n, m in sp.masks.from_scores(each, 0.5).items()} for each in scores)
        for found in others:
            assert_close(found, want, tolerance=0.0)
    states = [sp.distributed.hardened_state(model, 0.5) for model, _ in models]
    for state in states:
        assert_close(state, states[0])
        assert all(torch.equal(whole(state[name]) == 0, states[0][name] == 0) for name in state)


def check_a_split_model_hardens_in_place(folder: Path) -> None:
    mesh = init_device_mesh("cpu", (4,))
    one, split = mlp(), parallelize_module(mlp(), mesh, PLAN)
    sp.harden(one, 0.5), sp.harden(split, 0.5)
    assert_close(dict(split.named_parameters()), dict(one.named_parameters()), tolerance=0.0)
    assert_close({"y": split(batch())}, {"y": one(batch())})
    with pytest.raises(ValueError, match="full_state_dict"):
        sp.shrink(split, batch())
    whole_state = get_model_state_dict(split, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    assert_close(whole_state, one.state_dict() if dist.get_rank() == 0 else {}, tolerance=0.0)


def check_refusals(folder: Path) -> None:
    mesh = init_device_mesh("cpu", (4,))
    rows = masked(nn.Sequential(nn.Linear(8, 8)), pattern="rows")
    for model in (rows, nn.Sequential(nn.Linear(8, 8))):
        with pytest.raises(TypeError, match=type(model[0]).__name__):
            parallelize_module(model, mesh, {"0": Colwise()})
    split = parallelize_module(mlp(), mesh, {"0": Colwise()})
    with pytest.raises(ValueError, match="DTensor"):
        parallelize_module(split, mesh, {"0": Colwise()})
    dense = parallelize_module(nn.Sequential(nn.Linear(8, 8)), mesh, {"0": ColwiseParallel()})
    with pytest.raises(ValueError, match=r"0\.weight.*DTensor"):
        sp.convert(dense)
    layer = split[0]
    with pytest.raises(TypeError, match="DTensor"):
        sp.functional.masked_linear(batch(), layer.weight, layer.mask_logits, seed=0, draw=0, stream=1)
