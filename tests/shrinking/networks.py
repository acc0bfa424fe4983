"""Small networks with units that are zero, by name, with an input and the number of parameters that must be left."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochprune.models import mobilenet_v2, resnet20
from stochprune.nn.gated_branch import Dropped
from tests.shrinking.blocks import Net, attention, encoder, explicit_net, multihead, small_vit, zero


def mlp(activation: nn.Module) -> nn.Module:
    return nn.Sequential(zero(nn.Linear(5, 8), 1, 2), activation, zero(nn.Linear(8, 6), 0), activation, nn.Linear(6, 3))


def residual(self: Net, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
    y += x
    return self.fc(y.mean((2, 3)))


def residual_net(*rows: int) -> nn.Module:
    return Net(
        residual,
        stem=zero(nn.Conv2d(3, 6, 3, padding=1), *rows),
        conv1=zero(nn.Conv2d(6, 4, 3, padding=1, bias=False), 0, 1),
        bn1=nn.BatchNorm2d(4),
        conv2=zero(nn.Conv2d(4, 6, 3, padding=1, bias=False), 4, 5),
        bn2=nn.BatchNorm2d(6),
        fc=nn.Linear(6, 3),
    )


def dense_concat(self: Net, x: Tensor) -> Tensor:
    a = F.relu(self.a(x))
    b = F.relu(self.b(a))
    c = self.bn(torch.cat([a, b], 1))
    return self.fc(F.avg_pool2d(F.relu(c), 2).flatten(1))


def squeeze(self: Net, x: Tensor) -> Tensor:
    y = self.a(x)
    gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1)))))
    return self.b(F.silu(y * gate)).mean((2, 3))


def tokens(self: Net, x: Tensor) -> Tensor:
    y = self.patch(x).flatten(2).mT
    y = torch.cat([self.token.expand(len(y), -1, -1), y], 1) + self.position
    return self.fc(F.gelu(self.hidden(y)).mean(1))


def gated(self: Net, x: Tensor) -> Tensor:
    a, b = self.up(x).chunk(2, -1)
    return self.down(F.silu(a) * b)


def gated_net() -> nn.Module:
    """Units 0 and 5 of the first half and 0 and 5 of the second belong together; 1 of the first half stands alone."""
    return Net(gated, up=zero(nn.Linear(4, 16), 0, 5, 8, 13, 1), down=nn.Linear(8, 4))


def grouped_query(self: Net, x: Tensor) -> Tensor:
    q, k, v = (layer(x).unflatten(-1, (-1, 3)).transpose(1, 2) for layer in (self.q, self.k, self.v))
    y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    return self.out(y.transpose(1, 2).flatten(2))


def grouped_query_net() -> nn.Module:
    """Three groups of two heads of width 3: nothing reads the first, the values of the second are constant."""
    return Net(
        grouped_query,
        q=nn.Linear(12, 18),
        k=nn.Linear(12, 9),
        v=zero(nn.Linear(12, 9), 3, 4, 5),
        out=zero(nn.Linear(18, 12), *range(6), columns=True),
    )


def twice(self: Net, x: Tensor) -> Tensor:
    y = F.relu(self.a(x))
    y = F.relu(self.shared(y))
    return self.out(F.relu(self.shared(y)))


def branches(self: Net, x: Tensor) -> Tensor:
    return self.out(x + self.branch(x))


def two_consumers(self: Net, x: Tensor) -> Tensor:
    y = F.relu(self.a(x))
    return self.b(y) + self.c(y)


# By name: how to make the network, the shape of one example, and how many parameters are left.
Case = tuple[Callable[[], nn.Module], tuple[int, ...], int]


def depthwise() -> nn.Module:
    return nn.Sequential(
        zero(nn.Conv2d(3, 6, 1, bias=False), 0, 1),
        nn.ReLU(True),
        zero(nn.Conv2d(6, 6, 3, padding=1, groups=6), 0, 1, 2),
        nn.ReLU6(),
        nn.Conv2d(6, 4, 1),
        nn.Flatten(),
        nn.Linear(4 * 16, 2),
    )


def conv_stack(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * 4, 3))


def vgg() -> nn.Module:
    return nn.Sequential(
        zero(nn.Conv2d(3, 8, 3, padding=1), 0, 1, 2),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        zero(nn.Conv2d(8, 8, 3, padding=1), 3, 4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        zero(nn.Linear(8 * 4, 10), 1),
        nn.ReLU(inplace=True),
        nn.Linear(10, 3),
    )


CASES: dict[str, Case] = {
    **{
        f"mlp {type(f).__name__}": (lambda f=f: mlp(f), (5,), 6 * 6 + 5 * 7 + 3 * 6)
        for f in (nn.ReLU(), nn.GELU(), nn.Tanh(), nn.Sigmoid(), nn.Softplus())
    },
    "tokens": (lambda: mlp(nn.GELU()), (4, 5), 6 * 6 + 5 * 7 + 3 * 6),
    # Filters 0, 1, 2 of the first convolution: one stays and carries their constants into the padded second one.
    "vgg": (vgg, (3, 8, 8), 6 * 28 + 2 * 6 + 6 * (6 * 9 + 1) + 9 * (24 + 1) + 3 * 10),
    "residual, no row in common": (lambda: residual_net(0), (3, 6, 6), 6 * 28 + 3 * 54 + 2 * 3 + 6 * 27 + 12 + 21),
    # Channels 4 and 5 are constants; the one that stays carries the other into conv1.
    "residual": (lambda: residual_net(4, 5), (3, 6, 6), 5 * 28 + 3 * 45 + 2 * 3 + 5 * 27 + 10 + 18),
    "concat": (
        lambda: Net(
            dense_concat,
            a=zero(nn.Conv2d(3, 4, 3, padding=1, bias=False), 0),
            b=zero(nn.Conv2d(4, 4, 1), 1, 2),
            bn=nn.BatchNorm2d(8),
            fc=nn.Linear(8 * 9, 2),
        ),
        (3, 6, 6),
        3 * 27 + 2 * (3 + 1) + 2 * 5 + 2 * (5 * 9 + 1),
    ),
    "depthwise": (depthwise, (3, 4, 4), 3 * 3 + 3 * 10 + 4 * 4 + 2 * 65),
    "groups": (
        lambda: conv_stack(zero(nn.Conv2d(3, 8, 1), 0, 1, 4), nn.ReLU(), zero(nn.Conv2d(8, 8, 3, groups=4), 0, 1, 2)),
        (3, 6, 6),
        6 * 4 + 6 * (2 * 9 + 1) + 3 * (6 * 4 + 1),
    ),
    "group norm": (
        lambda: conv_stack(zero(nn.Conv2d(3, 8, 1), 0, 1, 4), nn.GroupNorm(4, 8)),
        (3, 6, 6),
        6 * 4 + 2 * 6 + 3 * (6 * 4 + 1),
    ),
    "instance norm": (
        lambda: conv_stack(zero(nn.Conv2d(3, 8, 1), 0, 1, 4), nn.InstanceNorm2d(8, affine=True)),
        (3, 6, 6),
        5 * 4 + 2 * 5 + 3 * (5 * 4 + 1),
    ),
    "layer norm": (
        lambda: nn.Sequential(zero(nn.Linear(5, 8), 0, 1), nn.LayerNorm(8), nn.Linear(8, 2)),
        (5,),
        8 * 6 + 16 + 18,
    ),
    "batch norm of features": (
        lambda: nn.Sequential(zero(nn.Linear(5, 8), 0, 1), nn.BatchNorm1d(8), nn.PReLU(8), nn.Linear(8, 2)),
        (5,),
        6 * 6 + 12 + 6 + 14,
    ),
    "transposed": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 1), zero(nn.ConvTranspose2d(4, 8, 2, 2), 1, 2, columns=True), nn.ReLU(), nn.Conv2d(8, 2, 1)
        ),
        (3, 4, 4),
        4 * 4 + 4 * 6 * 4 + 6 + 2 * 7,
    ),
    "reflected": (
        lambda: conv_stack(
            zero(nn.Conv2d(3, 8, 1), 0, 1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        ),
        (3, 6, 6),
        6 * 4 + 8 * (6 * 9 + 1) + 3 * 33,
    ),
    "squeeze and excitation": (
        lambda: Net(
            squeeze,
            a=zero(nn.Conv2d(3, 8, 1, bias=False), 0, 1),
            down=zero(nn.Conv2d(8, 4, 1), 2),
            up=nn.Conv2d(4, 8, 1),
            b=nn.Conv2d(8, 3, 1),
        ),
        (3, 5, 5),
        6 * 3 + 3 * 7 + 6 * 4 + 3 * 7,
    ),
    "class token": (
        lambda: Net(
            tokens,
            patch=nn.Conv2d(3, 6, 2, 2),
            token=nn.Parameter(torch.randn(1, 1, 6)),
            position=nn.Parameter(torch.randn(5, 6)),
            hidden=zero(zero(nn.Linear(6, 8), 0, 1), 2, columns=True),
            fc=nn.Linear(8, 3),
        ),
        (3, 4, 4),
        5 * 13 + 5 + 25 + 6 * 6 + 3 * 7,
    ),
    "gates": (gated_net, (4,), 12 * 5 + 4 * 7),
    "multihead": (
        lambda: Net(attention, attention=multihead(batch_first=True), norm=nn.LayerNorm(12), out=nn.Linear(12, 2)),
        (5, 12),
        3 * 6 * 13 + 12 * 7 + 24 + 26,
    ),
    "encoder": (encoder, (5, 12), 2 * (3 * 6 * 13 + 12 * 7 + 48 + 8 * 13 + 12 * 9)),
    "explicit attention": (explicit_net, (5, 12), 27 * 13 + 12 * 10),
    "grouped-query attention": (grouped_query_net, (5, 12), 13 * (6 + 3 + 3) + 12 * 7),
    "vit": (small_vit, (3, 8, 8), 588 + 48 + (48 + 24 * 13 + 12 * 9 + 40 * 13 + 12 * 41) + 1884 + 24 + 65),
    "gru": (
        lambda: Net(
            lambda self, x: self.out(self.gru(F.relu(self.a(x)))[0]),
            a=zero(nn.Linear(4, 6), 0, 1),
            gru=nn.GRU(6, 5, batch_first=True),
            out=nn.Linear(5, 2),
        ),
        (3, 4),
        6 * 5 + 3 * 5 * (6 + 5 + 2) + 12,
    ),
    "shared": (
        lambda: Net(twice, a=zero(nn.Linear(4, 6), 0, 1), shared=zero(nn.Linear(6, 6), 1, 2), out=nn.Linear(6, 2)),
        (4,),
        # Unit 1 is zero in both; its constants differ unless the biases are equal.
        6 * 5 + 6 * 7 + 14,
    ),
    "one consumer": (
        lambda: Net(
            two_consumers,
            a=nn.Linear(4, 6),
            b=zero(nn.Linear(6, 3), 0, 1, columns=True),
            c=zero(nn.Linear(6, 3), 1, 2, columns=True),
        ),
        (4,),
        5 * 5 + 2 * 3 * 6,
    ),
    "branch": (
        lambda: Net(
            branches,
            branch=nn.Sequential(nn.Linear(4, 7), nn.ReLU(), zero(nn.Linear(7, 4), *range(4))),
            out=nn.Linear(4, 2),
        ),
        (4,),
        10,
    ),
    "dropped branch": (
        lambda: Net(
            branches, branch=nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), Dropped(True)), out=nn.Conv2d(3, 2, 1)
        ),
        (3, 4, 4),
        8,
    ),
    "empty layer": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), zero(nn.Linear(6, 5), *range(5)), nn.Linear(5, 2)),
        (4,),
        4,
    ),
    "empty output": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), zero(nn.Linear(6, 3), *range(3))), (4,), 0),
    "zero outputs": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), zero(nn.Linear(6, 3), 1)), (4,), 30 + 21),
    "resnet20": (lambda: prune_filters(resnet20(seed=0, width=4)), (3, 8, 8), 6439),
    "mobilenet": (lambda: prune_filters(mobilenet_v2(seed=0, width=0.2)), (3, 8, 8), 57978),
}


def prune_filters(model: nn.Module) -> nn.Module:
    """Zero every second filter of each convolution."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            zero(module, *range(0, len(module.weight), 2))
    return model
