"""The bytes that ranks send in a step of small models, counted from the collectives, and those of the plan."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, PrepareModuleInput, RowwiseParallel, parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode

import stochprune as sp
from stochprune.language_models import LlamaShape, small_llama
from stochprune.language_models.model_sizes import LanguageModelSizes
from stochprune.runs import ranks
from stochprune.training.memory_plan import MemoryConfig
from stochprune.training.scaling import scaling_plan

TOKENS = torch.zeros(2, 16, dtype=torch.int64)


class Sent(TorchDispatchMode):
    """Counts the bytes that a rank sends, as rings send them, by collective."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, float] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its collectives come next
        name, share = str(function), 1 - 1 / dist.get_world_size()
        for part, collective, sent in (
            ("c10d._allgather_base_", "all-gather", lambda: share * args[0].nbytes),
            ("c10d._reduce_scatter_base_", "reduce-scatter", lambda: share * args[1].nbytes),
            ("c10d.allreduce_", "all-reduce", lambda: 2 * share * sum(tensor.nbytes for tensor in args[0])),
            ("_c10d_functional.all_reduce", "all-reduce", lambda: 2 * share * args[0].nbytes),
        ):
            if part in name:
                self.bytes[collective] = self.bytes.get(collective, 0) + sent()
        return function(*args, **(kwargs or {}))


def spread(model: nn.Module, parallel: str, mode: str) -> nn.Module:
    """Return a model that is spread over the ranks; of tensor parallelism the plain one, which sends as much."""
    if parallel == "tp":
        whole = Replicate()
        plan = {
            "self_attn": PrepareModuleInput(
                input_kwarg_layouts={"hidden_states": whole}, desired_input_kwarg_layouts={"hidden_states": whole}
            ),
            "mlp": PrepareModuleInput(input_layouts=(whole,), desired_input_layouts=(whole,)),
            **{f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"},
            **{f"mlp.{name}_proj": ColwiseParallel() for name in ("gate", "up")},
            **dict.fromkeys(("self_attn.o_proj", "mlp.down_proj"), RowwiseParallel()),
        }
        for block in model.model.layers:
            parallelize_module(block, init_device_mesh("cpu", (ranks.count(),)), plan)
        return model
    sp.convert(model, exclude="lm_head.*")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(mode == "joint" or name.endswith("mask_logits"))
    if parallel == "fsdp":
        for block in model.model.layers:
            fully_shard(block)
        fully_shard(model)
    return model


def count(out: Path) -> None:
    """Write what is counted and what is planned, by parallelism and mode."""
    found = {}
    folder = out / f"model-{ranks.rank()}"
    with ranks.joined():
        shape = LlamaShape(width=32, layers=2, heads=2, hidden=64)
        for parallel in ("ddp", "fsdp", "tp"):
            for mode in ("frozen", "joint"):
                model = small_llama(shape, 128, 16, 0)
                if ranks.is_first():
                    model.save_pretrained(folder)
                model = spread(model, parallel, mode)
                with Sent() as sent:
                    model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()
                    if parallel == "ddp":
                        ranks.add_up([each.grad for each in model.parameters() if each.grad is not None])
                if ranks.is_first():
                    config = MemoryConfig(weights="fp32", mode=mode, batch_size=2, sequence=16)
                    sizes = LanguageModelSizes(folder)
                    plan = scaling_plan(sizes, config, ranks=ranks.count(), parallel=parallel)
                    found[f"{parallel} {mode}"] = [sent.bytes, plan.sent]
        if ranks.is_first():
            (out / "count.json").write_text(json.dumps(found))
