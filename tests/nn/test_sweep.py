"""Architectures written for torch, activations and shortcuts in place: converted, trained for a step, hardened."""

from __future__ import annotations

import contextlib
import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import stochprune as sp
from stochprune.seeding import generator


def relu() -> nn.Module:
    return nn.ReLU(inplace=True)


def alexnet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 5, stride=2, padding=2), relu(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(8, 12, 3, padding=1), relu(), nn.Conv2d(12, 8, 3, padding=1), relu()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 16), relu(), nn.Linear(16, 4)),
    )


def vgg11() -> nn.Module:
    widths = [3, 4, "pool", 6, "pool", 8, 8, "pool", 8, 8, "pool"]
    layers: list[nn.Module] = []
    last = 3
    for width in widths[1:]:
        if width == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(last, width, 3, padding=1), relu()]
            last = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 8), relu(), nn.Linear(8, 4))


class Fire(nn.Module):
    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze, self.activation = nn.Conv2d(channels, squeezed, 1), relu()
        self.one, self.three = nn.Conv2d(squeezed, expanded, 1), nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.squeeze(x))
        return torch.cat([self.activation(self.one(x)), self.activation(self.three(x))], 1)


def squeezenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=2), relu(), Fire(8, 4, 6), Fire(12, 4, 6), nn.Dropout(0.0, inplace=True)),
        *(nn.Conv2d(12, 4, 1), relu(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


class Residual(nn.Module):
    """A ResNet's block: the shortcut is added in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        self.activation = relu()

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(self.activation(self.one(x)))
        y += x
        return self.activation(y)


class MBConv(nn.Module):
    """EfficientNet's block: expansion, depthwise convolution, squeeze and excitation, projection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.expand = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU(inplace=True)
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.SiLU(inplace=True)
        )
        self.reduce, self.excite = nn.Conv2d(wide, 2, 1), nn.Conv2d(2, wide, 1)
        self.project = nn.Conv2d(wide, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        gate = self.excite(nn.functional.silu(self.reduce(y.mean((2, 3), keepdim=True)), inplace=True))
        y *= gate.sigmoid_()
        y = self.project(y)
        y += x
        return y


def efficientnet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.SiLU(inplace=True), MBConv(4), Residual(4), MBConv(4)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)),
    )


class Autoencoder(nn.Module):
    """Transposed convolutions, one of them told its output size."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1)
        self.out = nn.ConvTranspose2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(nn.functional.relu_(self.down(x)), output_size=x.shape[-2:])
        return self.out(y.clamp_(min=0)).add_(x).mean((2, 3))


NETWORKS = [alexnet, vgg11, squeezenet, efficientnet, Autoencoder]
CONTEXTS = {
    "plain": contextlib.nullcontext,
    "fused_masking": sp.nn.fused_masking,
    "batched_samples": lambda model: sp.nn.batched_samples(model, 2),
}
PATTERNS = {"weights": {}, "filters": {"pattern": "rows", "exclude": nn.ConvTranspose2d}}


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with numbers of our own, since constructors draw from torch's global generator."""
    for name, parameter in model.named_parameters():
        values = torch.from_numpy(generator(seed, name).standard_normal(tuple(parameter.shape)))
        parameter.detach().copy_(values * (0.4 / max(1, parameter[:1].numel()) ** 0.5) + float("norm" in name.lower()))
    return model


def built(make) -> nn.Module:
    with torch.device("meta"):
        model = make()
    model = model.to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    return filled(model)


def learn(model: nn.Module, loss_of) -> None:
    """One step of training; every keep logit of a masked layer must get a finite gradient."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = loss_of(model)
    loss.backward()
    logits = {id(layer.mask_logits): layer.mask_logits for layer in sp.nn.masked_layers(model).values()}
    assert all(value.grad is not None and value.grad.isfinite().all() for value in logits.values())
    assert any(value.grad.any() for value in logits.values())
    optimiser.step()
    assert any(not torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__.lower())
def test_networks_with_operations_in_place(make, context, pattern):
    model = sp.convert(built(make), keep_kept=0.8, **PATTERNS[pattern]).train()
    x = torch.from_numpy(generator(1, "images").standard_normal((4, 3, 16, 16))).float()

    def loss_of(m):
        with CONTEXTS[context](m):
            return m(x).square().mean()

    learn(model, loss_of)
    evaluated = model.eval()(x)
    hard = sp.harden(copy.deepcopy(model), 0.5, "layer")
    assert not sp.nn.masked_layers(hard) and hard(x).shape == evaluated.shape
    assert sum(int((p == 0).sum()) for p in hard.parameters()) > 0


SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGES = {"image_size": 16, "num_channels": 3}
FAMILIES = {  # model, configuration, its options, and whether it reads images
    "BertForSequenceClassification": ("BertConfig", {**SIZES, "vocab_size": 32}, False),
    "RobertaForSequenceClassification": ("RobertaConfig", {**SIZES, "vocab_size": 32, "pad_token_id": 1}, False),
    "LlamaForCausalLM": ("LlamaConfig", {**SIZES, "vocab_size": 32}, False),
    "GPT2LMHeadModel": (
        "GPT2Config",
        {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 32, "n_positions": 16},
        False,
    ),
    "OPTForCausalLM": (
        "OPTConfig",
        {**SIZES, "ffn_dim": 24, "vocab_size": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 16},
        False,
    ),
    "T5ForConditionalGeneration": (
        "T5Config",
        {
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 24,
            "num_layers": 1,
            "num_heads": 2,
            "vocab_size": 32,
            "decoder_start_token_id": 0,
        },
        False,
    ),
    "ViTForImageClassification": ("ViTConfig", {**SIZES, **IMAGES, "patch_size": 4}, True),
    "ResNetForImageClassification": (
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"},
        True,
    ),
    "ConvNextForImageClassification": ("ConvNextConfig", {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}, True),
    "SegformerForImageClassification": (
        "SegformerConfig",
        {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]},
        True,
    ),
    "MobileNetV2ForImageClassification": ("MobileNetV2Config", {"depth_multiplier": 0.1, "image_size": 32}, True),
    "EfficientNetForImageClassification": (
        "EfficientNetConfig",
        {"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320, "image_size": 32},
        True,
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_transformers(name, transformers):
    kind, options, images = FAMILIES[name]
    config = getattr(transformers, kind)(**options)
    for dropout in ("attention_probs_dropout_prob", "hidden_dropout_prob", "dropout", "dropout_rate"):
        if hasattr(config, dropout):
            setattr(config, dropout, 0.0)  # torch's dropout draws from its global generator
    with torch.random.fork_rng(devices=[]):
        model = getattr(transformers, name)(config)
        filled(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sp.nn.UnmaskedWeightsWarning)  # positions of so small models
            sp.convert(model, keep_kept=0.8)
        tokens = torch.arange(12).view(2, 6) % 30 + 2
        size = config.image_size if hasattr(config, "image_size") else 32
        x = torch.from_numpy(generator(1, "images").standard_normal((2, 3, size, size))).float()
        given = {"pixel_values": x} if images else {"input_ids": tokens}
        sequence = not images and "Sequence" not in name
        labels = tokens if sequence else torch.tensor([0, 1])
        learn(model.train(), lambda m: m(**given, labels=labels).loss)
        hard = sp.harden(model, 0.5, "layer").eval()
        assert not sp.nn.masked_layers(hard) and hard(**given, labels=labels).loss.isfinite()
