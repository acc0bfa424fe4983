"""Compare pruning methods on a language model that is trained here, as in a study of methods.

The text is that of the folder with the name of the data set; its last part is held out. The error of a cell is the
perplexity on the held-out part, ``exp`` of the mean loss in nats a token.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from stochprune.data import Batches
from stochprune.language_models.llama import LlamaShape, small_llama
from stochprune.language_models.losses import distilled, next_token_loss, perplexity
from stochprune.language_models.text import Passages, TextData, read_text, split_text, text_data, train_tokenizer
from stochprune.runs.config import Range, at_least, option
from stochprune.runs.progress import ProgressBar
from stochprune.scores import prunable_weights
from stochprune.studies.bench import Bench
from stochprune.studies.methods import Arm, MethodCell, MethodResult, Methods, MethodsConfig, method_rows
from stochprune.studies.rows import LanguageRow
from stochprune.training.in_backward import StepInBackward
from stochprune.training.options import LoopOptions

MODEL = "llama"


@dataclasses.dataclass(frozen=True)
class LanguageArm(Arm):
    """A way to prune a language model.

    Attributes:
        distillation: the strength of :func:`stochprune.language_models.distilled` in the arm's trainings; 0 for none.
    """

    distillation: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.distillation <= 1:
            raise ValueError(f"arm {self.name!r}: distillation must lie in [0, 1], got {self.distillation}")


@dataclasses.dataclass(frozen=True)
class LanguageConfig(MethodsConfig):
    """Configuration of a study of language models. The batch size counts blocks of ``context`` tokens."""

    shape: LlamaShape = dataclasses.field(default_factory=LlamaShape)
    vocabulary: int = option(2048, "Tokens of the tokeniser, which is trained on the training text.", at_least(257))
    context: int = option(128, "Tokens in a block.", at_least(1))
    held_out: float = option(
        0.1, "Fraction of the text, its end, that is held out.", Range("lie in (0, 1)", lambda f: 0 < f < 1)
    )
    parts: int = option(1, "Epochs in a pass over the text.", at_least(1))
    clip_norm: float = option(1.0, "The largest norm of the gradient.", Range("be positive", lambda c: c > 0))


class TextBench(Bench):
    """The text, its models and its batches."""

    loss_fn = staticmethod(next_token_loss)

    def __init__(self, data: TextData, settings: LanguageConfig, bar: ProgressBar) -> None:
        self.data, self.settings, self.bar = data, settings, bar
        self.device, self.examples, self.batch_size = data.train_x.device, data.digest(), settings.batch_size
        self.options = LoopOptions(clip_norm=settings.clip_norm)

    @classmethod
    def of(cls, path: Path, settings: LanguageConfig, device: torch.device, bar: ProgressBar) -> TextBench:
        """Read the text and train its tokeniser on the part that is not held out.

        With ``validation`` the held-out text is not read: the end of the training text takes its place.
        """
        text, held_out = read_text(path), settings.held_out
        if settings.validation:
            text, held_out = split_text(text, held_out)[0], settings.validation
        tokenizer = train_tokenizer(split_text(text, held_out)[0], settings.vocabulary)
        return cls(text_data(text, tokenizer, settings.context, held_out).to(device), settings, bar)

    def build(self, name: str, seed: int) -> nn.Module:
        settings = self.settings
        model: nn.Module = small_llama(settings.shape, self.data.vocabulary, settings.context, seed)
        return model.to(self.device)

    def batches(self, seed: int) -> Passages:  # type: ignore[override]
        count = self.settings.train_examples or len(self.data.train_x)
        x, y = self.data.train_x[:count], self.data.train_y[:count]
        return Passages(Batches(x, y, self.batch_size, seed, drop_last=True), self.settings.parts)

    def steps(self, epochs: int) -> int:
        return epochs * len(self.batches(0))

    def tokens(self, epochs: int) -> int:
        """Return the number of tokens of that many epochs."""
        return self.steps(epochs) * self.batch_size * self.settings.context

    def error(self, model: nn.Module) -> float:
        """Return the perplexity on the held-out text."""
        return perplexity(model, self.data.test_x, self.data.test_y)


class Trained(Protocol):
    """The attributes of a training that :class:`Footprint` reads."""

    model: nn.Module
    optimizer: torch.optim.Optimizer


class Footprint:
    """Counts the bytes of a training at its end: parameters, buffers, gradients and the state of the optimiser.

    Attributes:
        bytes: of the largest of the trainings; activations do not count.
    """

    bytes = 0

    def on_end(self, state: Trained) -> None:
        tensors = {id(each): each for each in (*state.model.parameters(), *state.model.buffers())}
        gradients = [each.nbytes for each in tensors.values() if each.requires_grad]
        if isinstance(state.optimizer, StepInBackward):  # one gradient at a time
            gradients = [max(gradients)]
        states = state.optimizer.state_dict()["state"].values()
        moments = [each for of in states for each in of.values() if isinstance(each, torch.Tensor)]
        self.bytes = max(self.bytes, sum(gradients) + sum(each.nbytes for each in (*tensors.values(), *moments)))


@dataclasses.dataclass(frozen=True)
class LanguageResult(MethodResult):
    """The result of an arm; ``cut`` and ``trained`` are perplexities.

    Attributes:
        tokens: that the arm's trainings saw.
        bytes_a_weight: the bytes of :class:`Footprint` for each weight that can be pruned.
    """

    tokens: int
    bytes_a_weight: float


class LanguageMethods(Methods):
    """The cells of a study of language models, in the folder ``root``."""

    bench: TextBench
    result = LanguageResult

    def loop(self, cell: MethodCell) -> dict[str, Any]:
        assert isinstance(cell.arm, LanguageArm)
        options = self.bench.options
        if cell.arm.distillation:
            teacher = copy.deepcopy(self.dense_of(cell))
            options = dataclasses.replace(options, forward_loss=distilled(teacher, cell.arm.distillation))
        if dict(cell.arm.options).get("low_memory"):  # it has no gradient of all weights to clip
            options = dataclasses.replace(options, clip_norm=None)
        return {**self.bench.loop, "options": options}

    def _run(self, cell: MethodCell, folder: Path, watch: Sequence[object] = ()) -> LanguageResult:
        footprint = Footprint()
        found = super()._run(cell, folder, [footprint, *watch])
        weights = prunable_weights(self.dense_of(cell), exclude="lm_head.*")
        each = footprint.bytes / sum(weight.numel() for weight in weights.values())
        return LanguageResult(**vars(found), tokens=self.bench.tokens(cell.epochs), bytes_a_weight=round(each, 2))


def language_rows(cell: MethodCell, result: LanguageResult) -> list[LanguageRow]:
    """Return the rows of a cell, with its speed and its memory."""
    speed = round(result.tokens / result.seconds, 1) if result.seconds else 0.0
    rows = method_rows(cell, result)
    return [LanguageRow(**vars(row), tokens_per_second=speed, bytes_a_weight=result.bytes_a_weight) for row in rows]
