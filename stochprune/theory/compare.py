"""``stochprune bounds``: many bounds on one trained network, and measurements of its compression."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stochprune import data
from stochprune.data.splits import Split, split
from stochprune.pac_bayes.config import CertifyConfig
from stochprune.runs.device import device_of
from stochprune.runs.progress import ProgressBar
from stochprune.runs.run import open_run, run_folder
from stochprune.theory.bounds_config import BoundsConfig
from stochprune.theory.mask_certificate import mask_certificate
from stochprune.theory.measure import (
    Bound,
    Compressed,
    PrunedNetwork,
    SketchPoint,
    bound_table,
    compressed,
    pruned_network,
    sketches,
)
from stochprune.theory.norm_bounds import Norms
from stochprune.theory.subject import Subject, network, next_mask
from stochprune.training.config import WeightConfig
from stochprune.training.weights import train_weights


@dataclass(frozen=True)
class BoundsResults:
    """The measurements of one network and its bounds; see :class:`stochprune.theory.subject.Subject` for its measures.

    Attributes:
        sizes: widths, from the inputs to the outputs.
        examples: number of examples it was trained on.
        bounds: rows of :class:`stochprune.theory.measure.Bound`.
    """

    sizes: list[int]
    examples: int
    radius: float
    margin: float
    train_error: float
    test_error: float
    norms: list[Norms]
    compression: list[Compressed]
    bounds: list[dict[str, Any]]
    iterative: list[PrunedNetwork]
    sketch: list[SketchPoint]


def run_bounds(
    config: BoundsConfig,
    *,
    data_dir: Path | None = None,
    out: Path = Path("runs"),
    device: str | torch.device = "cpu",
) -> tuple[Path, dict[str, Any]]:
    """Train, compress, prune, certify and compare. A run that was killed goes on from its last checkpoint.

    Args:
        device: the device of training and certifying; the rest runs on the CPU in float64.

    Returns:
        The run's folder and what ``results.json`` there holds: ``configuration``, ``versions`` and the fields of
        :class:`BoundsResults`.

    Raises:
        ValueError: an unknown data set or device, or an error of a part.
        CheckpointError: a file in the folder that cannot be read, or another process is using the folder.
    """
    device = device_of(device)
    dataset = data.load(config.data, data_dir, standardised=False)
    parts = split(dataset.train_x, dataset.train_y, config.train_fraction, config.seed)
    assert parts.prior is not None
    # The folder's identity includes the data: a checkpoint of other files may have seen examples that certify here.
    folder = run_folder(out, "bounds", config, suffix=f"-{parts.prior.digest[:8]}")
    inputs = math.prod(dataset.shape)
    sizes = [inputs, *[config.width or inputs] * (config.layers - 1), dataset.num_classes]
    steps = math.ceil(len(parts.prior) / config.batch_size)
    total = steps * (config.epochs + config.rounds * config.round_epochs) + config.draws
    with open_run(config, folder) as run, ProgressBar("training", total) as bar:
        comparing = Comparison(config, parts, folder, device, bar)
        model = comparing.trained(network(sizes, config.seed), "dense", config.epochs)
        test_x = parts.scaled(dataset.test_x)
        subject = Subject.of(model, parts.prior, parts.certify, test_x, dataset.test_y, config.margin_share)
        if subject.margin <= 0:
            raise ValueError(
                f"{config.margin_share:g} of the training examples have a margin of {subject.margin:.3g} or less: "
                "train for longer, or give a larger margin_share"
            )
        rounds = comparing.iterative(network(sizes, config.seed), subject)
        certificate = comparing.certificate(model)
        bar.begin("compressing")
        compressions = [compressed(subject, scale, config.seed) for scale in config.scales]
        bar.begin("comparing")
        table = bound_table(subject, certificate, config)
        bar.begin("sketching")
        found = BoundsResults(
            sizes=sizes,
            examples=len(subject.train),
            radius=subject.radius,
            margin=subject.margin,
            train_error=subject.train_error(subject.weights),
            test_error=subject.test_error(subject.weights),
            norms=subject.norms,
            compression=compressions,
            bounds=[bound.row() for bound in table],
            iterative=rounds,
            sketch=sketches(config),
        )
        return folder, run.write(dataclasses.asdict(found), device)


@dataclass(frozen=True)
class Comparison:
    """The networks and samples of one comparison; each part continues from its checkpoint in ``folder``.

    Attributes:
        parts: the data; the prior's part is trained on, the other is held out.
        device: trains and certifies.
    """

    config: BoundsConfig
    parts: Split
    folder: Path
    device: torch.device
    bar: ProgressBar

    def trained(
        self, model: nn.Sequential, name: str, epochs: int, kept: Mapping[str, Tensor] | None = None
    ) -> nn.Sequential:
        """Train in place, under masks if they are given; the model is returned, on the CPU."""
        assert self.parts.prior is not None
        training = WeightConfig(epochs, self.config.lr, schedule="cosine")
        batches = self.parts.prior.to(self.device).batches(self.config.batch_size, self.config.seed)
        folder = self.folder / name
        train_weights(model.to(self.device), batches, training, masks=kept, folder=folder, callbacks=[self.bar])
        self.bar.finish(epochs * len(batches))
        return model.cpu()

    def iterative(self, start: nn.Sequential, subject: Subject) -> list[PrunedNetwork]:
        """Prune by magnitude in rounds, each of which starts from the weights before training."""
        config = self.config
        kept = {name: torch.ones_like(w, dtype=torch.bool) for name, w in subject.weights.items()}
        weights, rounds = subject.weights, []
        for number in range(1, self.config.rounds + 1):
            self.bar.begin(f"pruning, round {number}")
            kept = next_mask(weights, kept, 0.9)
            model = self.trained(copy.deepcopy(start), f"round{number}", self.config.round_epochs, kept)
            found = subject.of_pruned(model, config.margin_share)
            weights = found.weights
            rounds.append(pruned_network(found, config.levels, config.delta))
        return rounds

    def certificate(self, model: nn.Sequential) -> Bound:
        """Certify the same weights under random masks of keep probability ``keep``, on the held-out examples."""
        config = self.config
        self.bar.begin("certifying")
        plan = CertifyConfig(delta=0.8 * config.delta, delta_draws=0.2 * config.delta, draws=config.draws)
        folder = self.folder / "certificate"
        found = mask_certificate(
            model.to(self.device), self.parts, plan, keep=config.keep, seed=config.seed, folder=folder
        )
        self.bar.finish(config.draws)
        numbers = {"error": found.mean_loss, "kl": found.total_kl}
        return Bound("PAC-Bayes certificate", found.bound, True, numbers)
