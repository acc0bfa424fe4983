"""Modules from functions, units that are zero, and networks with attention in which heads are zero."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from stochprune.models import gpt, vit


class Net(nn.Module):
    """Submodules by name, and a forward pass that uses them."""

    def __init__(self, forward: Callable[..., Tensor], **modules: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


def zero(layer: nn.Module, *units: int, columns: bool = False) -> nn.Module:
    """Zero rows of a layer's weight, not of its bias; or columns."""
    with torch.no_grad():
        if columns:
            layer.weight[:, [*units]] = 0
        else:
            layer.weight[[*units]] = 0
    return layer


def trained(model: nn.Module) -> nn.Module:
    """Give normalisation layers the parameters and statistics that training would."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm):
            for tensor in (module.weight, module.bias, getattr(module, "running_mean", None)):
                nn.init.normal_(tensor) if tensor is not None else None
            if getattr(module, "running_var", None) is not None:
                nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def attention(self: Net, x: Tensor) -> Tensor:
    return self.out(self.norm(x + self.attention(x, x, x)[0]))


def multihead(**options: bool) -> nn.MultiheadAttention:
    """Four heads of width 3: of the second the values are zero, of the third what reads them; the biases are not."""
    layer = nn.MultiheadAttention(12, 4, **options)
    with torch.no_grad():
        layer.in_proj_weight[24 + 3 : 24 + 6] = 0
        layer.out_proj.weight[:, 6:9] = 0
        for bias in (layer.in_proj_bias, layer.out_proj.bias):
            nn.init.normal_(bias)
    return layer


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(12, 4, dim_feedforward=10, batch_first=True)
    layer.self_attn = multihead(batch_first=True)
    zero(layer.linear1, 0, 3)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def explicit_attention(self: Net, x: Tensor) -> Tensor:
    q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, 3).permute(2, 0, 3, 1, 4)
    y = ((q @ k.transpose(-1, -2)) * 3**-0.5).softmax(-1) @ v
    return self.proj(y.transpose(1, 2).flatten(2))


def explicit_net() -> nn.Module:
    net = Net(explicit_attention, qkv=nn.Linear(12, 36), proj=zero(nn.Linear(12, 12), 3, 4, 5, columns=True))
    net.heads = 4
    return net


def small_vit() -> nn.Module:
    model = vit(3, (8, 8), 5, patch=4, width=12, depth=2, heads=3, seed=0)
    block = model.blocks[0]
    with torch.no_grad():
        nn.init.normal_(block.attention.qkv.bias)
        block.attention.qkv.weight.view(3, 3, 4, 12)[2, 1] = 0
        nn.init.normal_(block.fc1.bias)
    zero(block.fc1, *range(8))
    return model


def small_gpt() -> nn.Module:
    model = gpt(7, 6, width=12, depth=1, heads=3, seed=0)
    zero(model.blocks[0].attention.proj, *range(4, 8), columns=True)
    zero(model.blocks[0].fc2, *range(40), columns=True)
    return model


def assert_equal(model: nn.Module, smaller: nn.Module, *inputs: Tensor) -> None:
    with torch.no_grad():
        expected, found = model(*inputs), smaller(*inputs)
    assert expected.shape == found.shape
    assert (expected - found).abs().max() <= 1e-5 * expected.abs().max()
