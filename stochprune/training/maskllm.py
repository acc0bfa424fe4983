"""MaskLLM: each group of weights learns a categorical distribution over the patterns of its N:M mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from stochprune import patterns
from stochprune.masks.ablate import apply
from stochprune.masks.select import from_scores
from stochprune.nn.masked_transposed import is_transformers_conv1d
from stochprune.runs.config import NOT_NEGATIVE, POSITIVE, Range, option
from stochprune.scores import by_output
from stochprune.seeding import generator
from stochprune.training.freezing import frozen
from stochprune.training.loop import Loader
from stochprune.training.parametrised import parametrised
from stochprune.training.pruning import ChoiceConfig, Counting, Pruned, PruningConfig
from stochprune.training.training import Training
from stochprune.training.weights import make_optimizer


def _left_out(default: float, instead: str) -> Range:
    """Return the range of an option of weight training, which trains nothing here: its default alone."""
    words = f"be left at {default:g}, because maskllm trains no weights: {instead}"
    return Range(words, lambda value: value == default)


@dataclass(frozen=True)
class MaskLLMConfig(ChoiceConfig, PruningConfig):
    """MaskLLM. Fang et al. 2024, "MaskLLM: learnable semi-structured sparsity for large language models" (arXiv
    2409.17481), written from the paper; the weights are frozen.

    A group of m weights has a logit for each of its patterns. In a forward pass its mask is the mean of the patterns
    under ``softmax((scale * logits + gumbel) / temperature)`` (equation 5). The scale and the temperature change
    linearly with the steps. The logits start from the first mask (equation 7), and a reward for the norm of the kept
    weights keeps the gradients alive (equation 8). At the end each group keeps the pattern of its highest logit.
    """

    pattern: str = option("2:4", "n:m, the pattern of the masks.")
    sparsity: float = option(0.5, "Fraction of weights pruned: 1 - n/m.", Range("lie in [0, 1)", lambda s: 0 <= s < 1))
    lr: float = option(1e-3, "Without effect, because the weights are frozen.", _left_out(1e-3, "give logit_lr"))
    weight_decay: float = option(0.0, "Without effect, because the weights are frozen.", _left_out(0.0, "leave it out"))
    scope: Literal["global"] = option("global", "Without effect, because the pattern ranks each group alone.")
    logit_lr: float = option(1e-3, "Adam's learning rate for the logits.", POSITIVE)
    first_std: float = option(0.01, "Standard deviation of the logits at the start.", POSITIVE)
    prior: float = option(3.0, "Strength of the first mask in the logits at the start.", NOT_NEGATIVE)
    first_scale: float = option(100.0, "Factor of the logits at the start.", POSITIVE)
    last_scale: float = option(500.0, "Factor of the logits at the end.", POSITIVE)
    first_temperature: float = option(4.0, "Temperature at the start.", POSITIVE)
    last_temperature: float = option(0.05, "Temperature at the end.", POSITIVE)
    reward: float = option(1e-5, "Loss that each unit of the squared norm of the kept weights saves.", NOT_NEGATIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        patterns.parse(self.pattern, type(self).__name__)


class SoftPatterns(nn.Module):
    """A parametrisation: the weight times the mean of the patterns under a relaxed categorical distribution.

    Args:
        weight: [out, in], or [in, out].
        pattern: n and m.
        turned: True if the weight is [in, out].

    Attributes:
        choice: the logits [out * in / m, patterns].
        kept: the last masked weight, with its graph.
    """

    options: Tensor
    noise: Tensor

    def __init__(self, weight: Tensor, pattern: tuple[int, int], turned: bool) -> None:
        super().__init__()
        self.turned = turned
        patterns.check("maskllm", *pattern, weight.shape[0 if turned else -1])
        self.register_buffer("options", patterns.kept(*pattern, weight), persistent=False)
        self.choice = nn.Parameter(weight.new_zeros(weight.numel() // pattern[1], len(self.options)))
        self.register_buffer("noise", torch.zeros_like(self.choice), persistent=False)
        self.scale = self.temperature = 1.0
        self.kept = weight.detach()

    def forward(self, weight: Tensor) -> Tensor:
        shares = torch.softmax((self.scale * self.choice + self.noise) / self.temperature, dim=-1)
        rows = weight.mT if self.turned else weight
        kept = rows * (shares @ self.options).view(rows.shape)
        self.kept = kept.mT if self.turned else kept
        return self.kept


class _Annealed(Counting):
    """Sets scale, temperature and noise of every step, and adds the reward to the loss."""

    def __init__(self, parts: Mapping[str, SoftPatterns], config: MaskLLMConfig, steps: int) -> None:
        self.parts, self.config, self.steps = parts, config, max(1, steps - 1)
        self.hold()

    def penalty(self) -> Tensor:
        reward = torch.stack([part.kept.square().sum() for part in self.parts.values()]).sum()
        for part in self.parts.values():  # a layer that the next forward pass does not call must not keep this graph
            part.kept = part.kept.detach()
        return -self.config.reward * reward

    def hold(self) -> None:
        config, progress = self.config, min(1.0, self.made / self.steps)  # after the last step it stays at the end
        for name, part in self.parts.items():
            part.scale = config.first_scale + (config.last_scale - config.first_scale) * progress
            part.temperature = config.first_temperature + progress * (
                config.last_temperature - config.first_temperature
            )
            numbers = generator(config.seed, "maskllm", name, self.made)
            part.noise.copy_(torch.from_numpy(numbers.gumbel(size=tuple(part.noise.shape))))

    def load_state_dict(self, state: dict[str, int]) -> None:
        super().load_state_dict(state)
        self.hold()


def maskllm(model: nn.Module, loader: Loader, config: MaskLLMConfig, training: Training) -> Pruned:
    """Train the logits of the patterns, then keep the most probable patterns, in place."""
    scored = by_output(model, training.chosen(config, model, loader))
    first = from_scores(scored, config.sparsity, pattern=config.pattern)
    n, m = patterns.parse(config.pattern, "maskllm")
    turned = {id(layer.weight) for layer in model.modules() if is_transformers_conv1d(layer)}
    make = lambda weight: SoftPatterns(weight, (n, m), id(weight) in turned)  # noqa: E731
    with parametrised(model, make, leave=False, exclude=config.exclude) as parts:
        for name, part in parts.items():
            _start(part, first[name], generator(config.seed, "maskllm", name), config)
        logits = [part.choice for part in parts.values()]
        constraint = _Annealed(parts, config, training.steps(loader, config.epochs))
        with frozen(model, logits):
            optimizer = make_optimizer(model, config, training.options, logits, config.logit_lr)
            history = training.fit(model, loader, config, optimizer, constraint)
        masks = {
            name: part.options[part.choice.argmax(dim=-1)].view_as(first[name]) > 0 for name, part in parts.items()
        }
    masks = by_output(model, masks)
    return Pruned(apply(model, masks), masks, history)


@torch.no_grad()
def _start(part: SoftPatterns, first: Tensor, numbers: np.random.Generator, config: MaskLLMConfig) -> None:
    """Fill the logits: random, and higher for patterns that are like the first mask [out, in]."""
    random = config.first_std * torch.from_numpy(numbers.standard_normal(tuple(part.choice.shape)))
    m = part.options.shape[1]
    alike = first.cpu().reshape(-1, m).double() @ part.options.double().mT.cpu()  # the number of weights that both keep
    alike -= alike.mean(dim=1, keepdim=True)
    part.choice.copy_(random + config.prior * config.first_std * alike)
