"""Every type of masked layer, small, with an input: what holds for all of them is tested over this table.

A type that is not in it fails ``test_zoo``. Each module has at most eight logits, so that its masks can be counted.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import stochprune as sp
from stochprune.nn import (
    GatedBranch,
    MaskedBilinear,
    MaskedGRU,
    MaskedGRUCell,
    MaskedLSTM,
    MaskedLSTMCell,
    MaskedModule,
    MaskedMultiheadAttention,
    MaskedRNN,
    MaskedRNNCell,
)
from stochprune.nn.random_weights import RANDOM
from stochprune.seeding import generator

BATCH = 6


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float32 numbers."""
    return torch.from_numpy(generator(seed, "zoo").standard_normal(shape)).float()


def _transposed_linear(kind: type = sp.nn.MaskedTransposedLinear, **options: str) -> sp.nn.MaskedLayer:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    with torch.device("meta"):
        dense = conv1d(2, 4)
    dense.weight, dense.bias = nn.Parameter(numbers(4, 2)), nn.Parameter(numbers(2))
    return kind.from_dense(dense, 0.6, **options)


def _random(layer: nn.Module, masked: bool) -> nn.Module:
    return RANDOM[type(layer)].from_masked(layer, 0.3, masked=masked)


def _gated() -> nn.Module:
    return sp.nn.GatedBranch(sp.nn.MaskedLinear(2, 2, keep=0.6, stream=1).to_dense(), keep=0.6)


def _lora(masked: bool = True, dropout: float = 0.0) -> nn.Module:
    if masked:
        layer = sp.nn.MaskedLoRALinear(2, 2, keep=0.6, rank=1, dropout=dropout)
    else:
        layer = sp.nn.SparseLoRALinear(sp.nn.MaskedLinear(2, 2).to_linear(numbers(2, 2) > 0), rank=1, dropout=dropout)
    layer.lora_B.detach().copy_(numbers(2, 1))
    return layer


class Applied(nn.Module):
    """A module of several inputs and outputs: given the same input that many times, its first output."""

    def __init__(self, module: nn.Module, inputs: int = 1) -> None:
        super().__init__()
        self.module, self.inputs = module, inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.module(*[x] * self.inputs)
        return y[0] if isinstance(y, tuple) else y


def _applied(kind: type[MaskedModule], *sizes: int, inputs: int = 1, **options: object) -> nn.Module:
    with torch.device("meta"):
        dense = kind.dense_type(*sizes, **options)
    dense.to_empty(device="cpu")
    for name, parameter in dense.named_parameters():
        parameter.detach().copy_(numbers(*parameter.shape, seed=len(name)))
    return Applied(kind.from_dense(dense, 0.6), inputs)


def plain(module: nn.Module, masks: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """The module under these masks of its logits, by weight name, through plain layers of torch."""
    if isinstance(module, GatedBranch):
        (gate,) = masks.values()
        return lambda x: gate.float() * module.branch(x)
    if isinstance(module, Applied):
        local = {name.removeprefix("module."): mask for name, mask in masks.items()}
        return Applied(module.module.to_dense(local), module.inputs)
    (mask,) = masks.values()
    return module.to_dense(module.of_weight(mask))


Case = tuple[Callable[[], nn.Module], tuple[int, ...]]  # how to make the module, and the shape of one example
ZOO: dict[str, Case] = {
    "linear": (lambda: sp.nn.MaskedLinear(2, 2, keep=0.6), (2,)),
    "linear of tokens": (lambda: sp.nn.MaskedLinear(2, 2, keep=0.6), (3, 2)),
    "lora": (_lora, (2,)),
    "transposed linear": (_transposed_linear, (4,)),
    "n:m transposed linear": (lambda: _transposed_linear(sp.nn.NMMaskedTransposedLinear, pattern="1:2"), (4,)),
    "embedding": (lambda: sp.nn.MaskedEmbedding(2, 2, keep=0.6), (3,)),
    "conv1d": (lambda: sp.nn.MaskedConv1d(1, 2, 2, keep=0.6), (1, 4)),
    "conv2d": (lambda: sp.nn.MaskedConv2d(1, 2, (1, 2), keep=0.6), (1, 3, 4)),
    "conv3d": (lambda: sp.nn.MaskedConv3d(1, 2, (1, 1, 2), keep=0.6), (1, 2, 3, 3)),
    "conv2d without bias": (lambda: sp.nn.MaskedConv2d(1, 1, 2, bias=False, keep=0.6), (1, 3, 3)),
    "conv2d of groups": (lambda: sp.nn.MaskedConv2d(2, 2, (2, 1), groups=2, keep=0.6), (2, 3, 3)),
    "conv2d padded around": (
        lambda: sp.nn.MaskedConv2d(1, 1, 2, padding=1, padding_mode="circular", keep=0.6),
        (1, 3, 3),
    ),
    "transposed conv1d": (lambda: sp.nn.MaskedConvTranspose1d(1, 2, 2, keep=0.6), (1, 4)),
    "transposed conv2d": (lambda: sp.nn.MaskedConvTranspose2d(1, 2, (1, 2), stride=2, keep=0.6), (1, 3, 3)),
    "transposed conv3d": (lambda: sp.nn.MaskedConvTranspose3d(2, 1, (1, 1, 2), keep=0.6), (2, 2, 2, 2)),
    "n:m": (lambda: sp.nn.NMMaskedLinear(4, 1, keep=0.6), (4,)),
    "rows": (lambda: sp.nn.StructuredMaskedLinear(3, 2, structure="rows", keep=0.6), (3,)),
    "columns": (lambda: sp.nn.StructuredMaskedLinear(2, 3, structure="columns", keep=0.6), (2,)),
    "blocks": (lambda: sp.nn.StructuredMaskedLinear(4, 4, structure="2x2", keep=0.6), (4,)),
    "filters of conv1d": (lambda: sp.nn.FilterMaskedConv1d(1, 3, 2, keep=0.6), (1, 4)),
    "filters of conv2d": (lambda: sp.nn.FilterMaskedConv2d(1, 3, 2, padding=1, keep=0.6), (1, 3, 3)),
    "filters of conv3d": (lambda: sp.nn.FilterMaskedConv3d(1, 3, 2, bias=False, keep=0.6), (1, 3, 3, 3)),
    "attention": (lambda: _applied(MaskedMultiheadAttention, 1, 1, inputs=3, batch_first=True), (3, 1)),
    "rnn": (lambda: _applied(MaskedRNN, 2, 1, batch_first=True), (3, 2)),
    "lstm": (lambda: _applied(MaskedLSTM, 1, 1, batch_first=True), (3, 1)),
    "gru": (lambda: _applied(MaskedGRU, 1, 1, batch_first=True), (3, 1)),
    "rnn cell": (lambda: _applied(MaskedRNNCell, 2, 1), (2,)),
    "lstm cell": (lambda: _applied(MaskedLSTMCell, 1, 1), (1,)),
    "gru cell": (lambda: _applied(MaskedGRUCell, 1, 1), (1,)),
    "bilinear": (lambda: _applied(MaskedBilinear, 2, 2, 1, inputs=2), (2,)),
    "gated branch": (_gated, (2,)),
    "random linear": (lambda: _random(sp.nn.MaskedLinear(2, 2, keep=0.6), False), (2,)),
    "random conv1d": (lambda: _random(sp.nn.MaskedConv1d(1, 2, 2, keep=0.6), False), (1, 4)),
    "random conv2d": (lambda: _random(sp.nn.MaskedConv2d(1, 2, (1, 2), keep=0.6), False), (1, 3, 4)),
    "random conv3d": (lambda: _random(sp.nn.MaskedConv3d(1, 2, (1, 1, 2), keep=0.6), False), (1, 2, 3, 3)),
    "spike and slab linear": (lambda: _random(sp.nn.MaskedLinear(2, 2, keep=0.6), True), (2,)),
    "spike and slab conv2d": (lambda: _random(sp.nn.MaskedConv2d(1, 2, (1, 2), keep=0.6), True), (1, 3, 4)),
}
WITH_DROPOUT: dict[str, Case] = {
    "lora with dropout": (lambda: _lora(dropout=0.4), (3, 2)),
    "sparse lora with dropout": (lambda: _lora(False, dropout=0.4), (3, 2)),
}
"""Layers with more randomness than one mask, or without logits: tested in all modes."""
MODULES = {"attention", "rnn", "lstm", "gru", "rnn cell", "lstm cell", "gru cell", "bilinear"}
"""Those that run the forward of torch's module, and so return what it returns, under weights that are masked before."""


def make(name: str) -> tuple[nn.Module, Tensor]:
    """The module in training mode, and a batch of examples."""
    build, shape = {**ZOO, **WITH_DROPOUT}[name]
    module = build().train()
    if name == "embedding":
        return module, torch.from_numpy(generator(1, "zoo").integers(0, 2, (BATCH, *shape)))
    return module, numbers(BATCH, *shape, seed=1)
