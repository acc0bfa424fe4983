"""The Python of docs/distributed.md, on four processes instead of eight devices."""

from __future__ import annotations

import os
from pathlib import Path

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import stochprune as sp
from tests.distributed.networks import batch, loss
from tests.test_readme import ROOT, blocks

FOUR = {'"cuda"': '"cpu"', "(8,)": "(4,)", "(2, 4)": "(2, 2)"}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def check_the_page(folder: Path) -> None:
    os.chdir(folder)
    dense = Blocks()
    masks = sp.masks.from_scores(sp.scores.magnitude(dense), 0.5)
    split = Blocks()
    for layer in split.layers:
        fully_shard(layer)
    names = {"dense": fully_shard(split), "masks": masks, "plain": Blocks(), "example_inputs": batch()}
    for code in blocks(ROOT / "docs" / "distributed.md", "python"):
        for eight, four in FOUR.items():
            code = code.replace(eight, four)
        if "sp.convert(" in code:  # each way of splitting starts from a model that is not split
            names["model"] = dense
        elif "parallelize_module" in code or "own_masks" in code:
            names["model"] = sp.convert(Blocks(), masks)
        exec(compile(code, "docs/distributed.md", "exec"), names)
        dist.barrier()  # the next one may read a file
        if "sp.distributed.shard" in code or "own_masks" in code:
            loss(names["model"](batch())).backward()
    assert sorted(path.name for path in folder.joinpath("pruned").glob("*.safetensors")) == [
        "model-00001-of-00001.safetensors"
    ]
