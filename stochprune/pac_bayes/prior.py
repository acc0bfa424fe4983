"""Priors: a network fixed before the certifying examples are used, and the examples that it has seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochprune import masks, rng, scores
from stochprune.arguments import check, checked
from stochprune.data.augment import augmented
from stochprune.data.splits import Subset
from stochprune.nn import convert, masked_layers, sampling
from stochprune.pac_bayes.config import PriorConfig
from stochprune.pac_bayes.digests import settings_of, tensor_digests
from stochprune.runs.digests import json_digest
from stochprune.training.config import WeightConfig
from stochprune.training.weights import train_weights


@dataclass(frozen=True)
class Prior:
    """A network under the prior's random masks, and the parts of the data that it has seen.

    It must not be changed: a later change could depend on the certifying examples, and the KL would not count it. So
    the prior stores digests of its tensors, and every function that uses the prior compares them. To change a prior on
    purpose, make another one whose ``seen`` contains every part that the change depends on.

    Attributes:
        model: a converted model whose keep probabilities are the prior's.
        seen: every part of the data that the weights, the masks or a choice on the way depend on. Empty for a data-free
            prior.
        sigma: standard deviation of the weights, for posteriors over weights.
        tensors: digest of each tensor of the model.
        settings: types and settings of its modules, such as the slope of a leaky ReLU.

    Raises:
        ValueError: ``seen`` is not a sequence of parts, or ``sigma`` is not positive and finite.
    """

    model: nn.Module
    seen: tuple[Subset, ...]
    sigma: float = PriorConfig.sigma
    tensors: dict[str, str] = field(init=False, repr=False)
    settings: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check("Prior", "model", nn.Module, self.model, TypeError)
        check("Prior", "sigma", float, self.sigma, TypeError)
        if not isinstance(self.seen, (tuple, list)) or not all(isinstance(part, Subset) for part in self.seen):
            raise ValueError(
                f"Prior: seen must be a tuple of the parts of data.splits that the prior has seen, () for none, "
                f"got {self.seen!r:.200}"
            )
        if not (self.sigma > 0 and math.isfinite(self.sigma)):
            raise ValueError(f"Prior: sigma must be positive and finite, got {self.sigma!r}")
        object.__setattr__(self, "seen", tuple(self.seen))
        object.__setattr__(self, "tensors", tensor_digests(self.model))
        object.__setattr__(self, "settings", settings_of(self.model))

    @property
    def digest(self) -> str:
        """Digest of the prior when it was made: its tensors, its sigma, and the parts that it has seen."""
        return json_digest([self.tensors, self.sigma, [part.digest for part in self.seen]])

    def require_unedited(self, function: str) -> None:
        """Raise if the model was changed after the prior was made.

        Args:
            function: the caller, named in the message.

        Raises:
            ValueError: a tensor or a module differs; the message names the first one.
        """
        before, now = {**self.tensors, **self.settings}, {**tensor_digests(self.model), **settings_of(self.model)}
        for name in {**before, **now}:
            if now.get(name) != before.get(name):
                raise ValueError(
                    f"{function}: the prior was edited after it was made: {name} differs. If the change depends on no "
                    "certifying example, make a new Prior(model, seen, sigma) with the parts that it has seen"
                )


@checked
def train_prior(
    model: nn.Module,
    part: Subset | None,
    config: PriorConfig,
    *,
    seed: int = 0,
    folder: Path | None = None,
    callbacks: Sequence[object] = (),
) -> Prior:
    """Turn a plain model into a prior, in place: convert it, and train its weights under random masks.

    With a score the network is first trained dense for the same number of epochs, then pruned: the weights that the
    score keeps have keep probability ``keep``, the others ``keep_pruned``. The keep probabilities are exactly
    representable as thresholds, so the distribution that is sampled is the one that the KL uses.

    Args:
        model: a plain model with linear layers, whose weights, if they were trained before, have seen none of the
            certifying examples.
        part: the prior's part of the data. None gives a data-free prior: the initial weights times 1 / sqrt(keep), so
            that their variance under the mask is that of the initialisation (Ramanujan et al. 2020, "What's hidden in a
            randomly weighted neural network?", section 5).
        seed: seed of the batches, the shifts and the masks of the training, 0 .. 2^64 - 1.
        folder: if given, checkpoints are written there, and a run that was killed continues from them.

    Raises:
        CheckpointError: the folder's checkpoint is truncated, or belongs to another training: another part, seed or
            configuration.
        ValueError: a score without data; also the errors of :func:`stochprune.convert` and of the training loop.
    """
    chosen = None
    if config.score != "none":
        if part is None:
            raise ValueError(f"the score {config.score} needs a trained network: give the prior a part of the data")
        _train(model, part, config, seed, folder / "dense" if folder else None, callbacks)
        batches = part.batches(config.prior_batch_size, seed)
        scored = scores.compute(config.score, model, F.cross_entropy, batches, sparsity=config.sparsity, seed=seed)
        chosen = masks.from_scores(
            {name: s for name, s in scored.items() if fnmatchcase(name, config.include)}, config.sparsity
        )
    device = next(model.parameters()).device
    # On the CPU, so that the prior's bytes, and everything stored under their digest, are the same on every device.
    model = convert(
        model.cpu(), chosen, keep_kept=config.keep, keep_pruned=config.keep_pruned, include=config.include, seed=seed
    )
    for layer in masked_layers(model).values():
        with torch.no_grad():
            layer.mask_logits.copy_(representable(layer.mask_logits))
        layer.mask_logits.requires_grad_(False)
    if part is None:
        for layer in masked_layers(model).values():
            with torch.no_grad():
                layer.weight.div_(math.sqrt(config.keep))
    model.to(device)
    if part is not None:
        with sampling(model):
            _train(model, part, config, seed, folder, callbacks)
    return Prior(model.requires_grad_(False).eval(), () if part is None else (part,), config.sigma)


def representable(logits: Tensor) -> Tensor:
    """Return the logits of the quantised probabilities T / 32768 of ``logits``."""
    threshold = rng.threshold_from_logits(logits).to(torch.int32).double()
    return torch.logit(threshold / rng.LEVELS).to(logits.dtype)


def _train(
    model: nn.Module, part: Subset, config: PriorConfig, seed: int, folder: Path | None, callbacks: Sequence[object]
) -> None:
    loader = augmented(part.batches(config.prior_batch_size, seed), config.shift, config.flip)
    training = WeightConfig(
        config.prior_epochs,
        config.prior_lr,
        optimizer=config.prior_optimizer,
        weight_decay=config.prior_weight_decay,
        schedule="cosine",
    )
    # A training on another part, other images or another order must not continue from this checkpoint: the prior would
    # have seen examples that its ``seen`` does not name.
    identity = f"{part.digest} {config.shift} {config.flip} {config.prior_batch_size} {seed}"
    train_weights(model, loader, training, folder=folder, identity=identity, callbacks=callbacks)
