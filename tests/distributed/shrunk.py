"""``sp.distributed.shrink``: what ``sp.shrink`` gives in one process, and no process holds more than a block."""

from __future__ import annotations

import copy
import gc
import importlib
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import stochprune as sp
from stochprune.distributed import shrunk
from tests.distributed.networks import assert_close, batch, gradients, loss, mlp, whole
from tests.nn.vision import available

SIZE = 6 * 10 + 10 + 10 * 6 + 6 + 10 * 6  # parameters of a block


class Block(nn.Module):
    """A residual block of width 6. Of its 10 units three are zero, and one is read only where a scale is given."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.up, self.down, self.extra = nn.Linear(6, 10), nn.Linear(10, 6), nn.Linear(10, 6, bias=False)
        self.norm = nn.BatchNorm1d(10) if norm else nn.Identity()
        self.register_buffer("shift", torch.linspace(0, 1, 10), persistent=False)
        with torch.no_grad():
            self.up.weight[[1, 4, 7]] = 0
            self.down.weight[:, 2] = 0

    def forward(self, x: Tensor, *, scale: Tensor | None = None, note: str = "") -> tuple[Tensor, str]:
        hidden = self.norm(self.up(x)).relu() + self.shift.to(x.dtype)
        y = self.down(hidden)
        return x + (y if scale is None else y + scale * self.extra(hidden)), f"{note}."


class Twice(nn.Module):
    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.block(x)[0], self.block(x, scale=x.mean(1, keepdim=True))[0]


class Net(nn.Module):
    """Three blocks, of which the first runs twice and the last never; the first and the last layer share a weight."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.first, self.tail = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6))
        self.tail[0].weight = self.first.weight
        self.layers = nn.ModuleList(Block(norm) for _ in range(3))
        self.alias = [self.layers[1]]
        self.layers[1].down.weight.requires_grad = False

    def forward(self, x: Tensor) -> Tensor:
        x, note = self.layers[0](self.first(x))
        x, note = self.layers[0](x, scale=x.mean(1, keepdim=True), note=note)
        x, note = self.alias[0](x, note=note)
        assert note == "..."
        return self.tail(x)


def net(norm: bool = False) -> Net:
    with torch.random.fork_rng([]):
        torch.manual_seed(4)
        return Net(norm)


def split(model: nn.Module, **options) -> nn.Module:
    for layer in model.layers:
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def shrunk_net(model: nn.Module) -> nn.Module:
    with pytest.warns(UserWarning, match=r"layers\.2"):
        return sp.distributed.shrink(model, batch())


def expected() -> Net:
    """The network in one process, with the blocks that run shrunk."""
    one = net()
    one.layers[0] = sp.shrink(Twice(one.layers[0]), batch()).block
    one.layers[1] = sp.shrink(one.layers[1], batch())
    one.alias = [one.layers[1]]
    return one


def outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return {"y": model.eval()(x)}


def local(model: nn.Module) -> int:
    return sum(p.to_local().numel() for p in model.parameters())


def check_blocks_are_those_of_one_process(folder: Path) -> None:
    """Also blocks that run twice or never, tied and frozen weights, and buffers that no state dict has."""
    model, one = split(net()), expected()
    before = {name: whole(value).clone() for name, value in model.state_dict().items()}
    model.layers[0].eval()
    modes, random = [m.training for m in model.modules()], torch.get_rng_state()
    smaller = shrunk_net(model)
    assert modes == [m.training for m in model.modules()] == [m.training for m in smaller.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert_close(dict(smaller.named_parameters()), dict(one.named_parameters()), tolerance=0.0)
    assert_close(dict(smaller.named_buffers()), dict(one.named_buffers()), tolerance=0.0)
    assert all(isinstance(p, DTensor) for p in smaller.parameters())
    assert isinstance(smaller, FSDPModule) and all(isinstance(layer, FSDPModule) for layer in smaller.layers)
    assert smaller.first.weight is smaller.tail[0].weight and smaller.alias[0] is smaller.layers[1]
    assert [p.requires_grad for p in smaller.parameters()] == [p.requires_grad for p in one.parameters()]
    assert local(smaller) <= local(model)  # the last part of uneven ones may be as long as before
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    report = smaller.shrink_report
    assert report.parameters == (2 * SIZE, sum(p.numel() for p in one.layers[:2].parameters()))
    assert [report.changed[f"layers.{i}.up.weight"] for i in (0, 1)] == [((10, 6), (7, 6)), ((10, 6), (6, 6))]
    assert str(report) and all(name.startswith("layers.") for name in report.changed)
    assert_close(model.state_dict(), before, tolerance=0.0)
    smaller.state_dict()  # before the first forward pass
    for x in (batch(), -batch(5)):
        assert_close(outputs(smaller, x), outputs(net(), x))
        assert_close(outputs(model, x), outputs(net(), x))


def check_a_process_holds_one_block(folder: Path) -> None:
    """When a block is gathered, no tensor of the blocks before it is left, nor of their copies."""
    model = split(net())
    gather, old = DTensor.full_tensor, {id(each) for each in _parameters()}
    held: list[int] = []

    def watched(part: DTensor, **options) -> Tensor:
        held.append(sum(p.numel() for p in _parameters() if id(p) not in old))
        return gather(part, **options)

    with mock.patch.object(DTensor, "full_tensor", watched):
        shrunk_net(model)
    sizes = [p.numel() for p in model.layers[0].parameters()]
    assert sum(sizes) == SIZE
    assert held == 2 * [sum(sizes[:i]) for i in range(len(sizes))]


def _parameters() -> list[nn.Parameter]:
    """Return all parameters in this process's memory that are not parts; FSDP keeps some without memory."""
    found = [each for each in gc.get_objects() if type(each) is nn.Parameter and not each.is_meta]
    return [each for each in found if each.untyped_storage().nbytes()]


def check_what_fully_shard_was_told(folder: Path) -> None:
    """Meshes of two dimensions, groups inside a block, several modules in one group, parameters left out, options."""
    size = dist.get_world_size()
    parts = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("copies", "parts"))
    for mesh, after in ((None, False), (parts, False), *([(None, 2)] if size == 4 else [])):
        model = net()
        left_out = {model.layers[0].up.bias}
        fully_shard(model.layers[0].down, mesh=mesh)
        for layer in model.layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=after, ignored_params=left_out)
        fully_shard([model.first, model.tail[0]], mesh=mesh)
        fully_shard(model, mesh=mesh)
        smaller = shrunk_net(model)
        assert_close(dict(smaller.named_parameters()), dict(expected().named_parameters()), tolerance=0.0)
        known = dict(model.named_parameters())
        for name, p in smaller.named_parameters():
            old = known.get(name, known["layers.1.up.weight"])  # one layer gets a bias
            assert getattr(p, "placements", None) == getattr(old, "placements", None), name
        assert_close(outputs(smaller, batch()), outputs(net(), batch()))
        assert not isinstance(smaller.layers[0].up.bias, DTensor)
        split_modules = [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]
        assert split_modules == [name for name, module in smaller.named_modules() if isinstance(module, FSDPModule)]
        left = smaller.layers[1].up.weight  # whole after the forward pass without resharding, or split over two
        assert left.device_mesh.shape[-1] == 2 if after else not isinstance(left, DTensor)
        assert isinstance(smaller.tail[0].weight, DTensor)
        smaller.train(), loss(smaller(batch())).backward()


def check_training_and_checkpoints(folder: Path) -> None:
    one, smaller = expected(), shrunk_net(split(net()))
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.1) for model in (one, smaller)]
    share = batch().chunk(dist.get_world_size())[dist.get_rank()]
    for _ in range(2):
        for model, optimizer, x in ((one, optimizers[0], batch()), (smaller, optimizers[1], share)):
            optimizer.zero_grad()
            loss(model(x)).backward()
            optimizer.step()
        assert_close(gradients(smaller), gradients(one))
    assert_close(dict(smaller.named_parameters()), dict(one.named_parameters()), tolerance=1e-4)
    dcp.save({"model": get_model_state_dict(smaller)}, checkpoint_id=folder / "checkpoint")
    again = shrunk_net(split(net()))
    state = {"model": get_model_state_dict(again)}
    dcp.load(state, checkpoint_id=folder / "checkpoint")
    set_model_state_dict(again, state["model"])
    assert_close(dict(again.named_parameters()), {n: whole(p) for n, p in smaller.named_parameters()}, tolerance=0.0)
    twice = shrunk_net(again).shrink_report  # nothing is left to remove
    assert twice.parameters[0] == twice.parameters[1]


def check_mixed_precision(folder: Path) -> None:
    """A block whose output is constant becomes a constant in the narrow dtype."""

    def make() -> nn.Module:
        model = net()
        model.layers = nn.ModuleList([*model.layers[:2]])
        with torch.no_grad():
            model.layers[1].down.weight.zero_()
        return model

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = split(make(), mp_policy=policy)
    smaller = sp.distributed.shrink(model, batch())
    assert smaller.shrink_report.removed
    assert all(p.dtype == torch.float32 for p in smaller.parameters())
    want, found = outputs(model, batch())["y"], outputs(smaller, batch())["y"]
    assert found.dtype == want.dtype == torch.bfloat16
    assert_close({"y": found}, {"y": want}, tolerance=0.02)
    loss(smaller(batch())).backward()


def check_a_masked_model(folder: Path) -> None:
    """From masks to a smaller model, without the whole of it in any process."""

    def make() -> nn.Module:
        model = mlp(6)
        model[2][0].mask_logits.data[2] = -20.0
        return model

    dense = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 4))
    hidden = copy.deepcopy(dense)
    masked_model = sp.distributed.shard(make(), [])
    with pytest.raises(ValueError, match="hardened_state"):
        sp.distributed.shrink(masked_model, batch())
    for model, block in ((dense, dense[2]), (hidden, None)):
        if block is not None:
            fully_shard(block)
        fully_shard(model)
        set_model_state_dict(model, sp.distributed.hardened_state(masked_model))
    smaller = sp.distributed.shrink(dense, batch())
    assert_close(outputs(smaller, batch()), outputs(sp.harden(make()), batch()))
    with pytest.raises(ValueError, match="one block"):
        sp.distributed.shrink(hidden, batch())


def check_a_transformer(folder: Path) -> None:
    """Heads and rows go, from a model of transformers whose layers take masks, tables and a cache."""
    if not available("transformers"):
        return
    transformers = importlib.import_module("transformers")
    ids = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(1))
    for tied in (False, True):

        def make(tied: bool = tied) -> nn.Module:
            config = transformers.LlamaConfig(
                **{"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
                **{"num_attention_heads": 4, "max_position_embeddings": 32, "tie_word_embeddings": tied},
            )
            with torch.random.fork_rng([]), torch.no_grad():
                torch.manual_seed(0)
                model = transformers.LlamaForCausalLM(config)
                for i, layer in enumerate(model.model.layers):
                    layer.mlp.gate_proj.weight[5 : 20 + i] = 0
                    layer.self_attn.o_proj.weight[:, 8:16] = 0
            return model

        model = make()
        for layer in model.model.layers:
            fully_shard(layer)
        if not tied:  # as torchtitan splits: the embedding is a block
            fully_shard(model.model.embed_tokens)
            fully_shard([model.model.norm, model.lm_head])
        fully_shard(model)
        one = sp.shrink(make(), {"input_ids": ids, "use_cache": False})
        for options in ({}, {"use_cache": False}, {"attention_mask": torch.ones_like(ids).tril(7)}):
            smaller = sp.distributed.shrink(model, {"input_ids": ids, **options})
            assert_close(dict(smaller.named_parameters()), dict(one.named_parameters()), tolerance=0.0)
        with torch.no_grad():
            want, found = (each.eval()(input_ids=ids[:, :7]) for each in (make(), smaller))
            assert_close({"logits": found.logits}, {"logits": want.logits})
            again = smaller(input_ids=ids[:, 7:], past_key_values=found.past_key_values)
            want = make().eval()(input_ids=ids)
            assert_close({"logits": again.logits}, {"logits": want.logits[:, 7:]})
        smaller.train()
        smaller(input_ids=ids, labels=ids).loss.backward()
        torch.optim.SGD(smaller.parameters(), lr=0.1).step()
        assert (smaller.lm_head.weight is smaller.model.embed_tokens.weight) == tied


def check_what_shrink_refuses(folder: Path) -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    model = split(net())
    with pytest.raises(ValueError, match=r"stochprune\.distributed\.shrink"):
        sp.shrink(model, batch())
    for inputs, named in (
        (batch() + (rank == size - 1), "differ between processes"),
        (batch(4 + rank), "differ between processes"),
        (batch(features=5), "fails on the example"),
        (batch(0), "example_inputs"),
    ):
        with pytest.raises(ValueError, match=named):
            sp.distributed.shrink(model, inputs)
    own = net(norm=True)
    own.layers[1].norm.running_mean.fill_(rank)
    with pytest.raises(ValueError, match=r"layers\.1\.norm\.running_mean"):
        sp.distributed.shrink(split(own), batch())
    with pytest.raises(ValueError, match="Net"):
        sp.distributed.shrink(net(), batch())
    with pytest.raises(TypeError, match="model"):
        sp.distributed.shrink(batch(), batch())
    mesh = init_device_mesh("cpu", (size,))
    with pytest.raises(ValueError, match=r"layers\.0\.up\.weight.*full_state_dict"):
        sp.distributed.shrink(parallelize_module(net(), mesh, {"layers.0.up": ColwiseParallel()}), batch())
    two = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("dp", "tp"))
    both = parallelize_module(net(), two["tp"], {"layers.0.up": ColwiseParallel()})
    with pytest.raises(ValueError, match=r"layers\.0\.up\.weight.*full_state_dict"):
        sp.distributed.shrink(split(both, mesh=two["dp"]), batch())


def check_processes_that_differ_stop(folder: Path) -> None:
    def nothing_in_one(model: nn.Module, inputs: object) -> nn.Module:
        smaller = sp.shrink(model, inputs)
        if dist.get_rank() == 0:
            smaller.block = model.block
        return smaller

    with mock.patch.object(shrunk, "shrink_whole", nothing_in_one), pytest.raises(RuntimeError, match=r"layers\.0"):
        sp.distributed.shrink(split(net()), batch())
