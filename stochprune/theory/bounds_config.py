"""The options of ``stochprune bounds``."""

from __future__ import annotations

from dataclasses import dataclass

from stochprune.runs.config import POSITIVE, PROBABILITY, Config, at_least, option


@dataclass(frozen=True)
class BoundsConfig(Config):
    """Configuration of one fully connected network of equal layers without biases, and of the bounds on it."""

    data: str = option("digits", "Data set: digits (comes with scikit-learn) or mnist (IDX files in --data-dir).")
    layers: int = option(5, "Linear layers, as wide as the inputs.", at_least(2))
    epochs: int = option(20, "Epochs of training.", at_least(1))
    batch_size: int = option(64, "Examples in a batch.", at_least(1))
    lr: float = option(1e-3, "Adam's learning rate; it falls by a cosine.", POSITIVE)
    train_fraction: float = option(0.8, "Fraction of the training set for training; the rest certifies.", PROBABILITY)
    scales: tuple[float, ...] = option(
        (0.1, 0.5, 1.0, 2.0, 5.0, 10.0), "Scales d of the compression, with commas.", POSITIVE
    )
    margin_share: float = option(
        0.1, "The margin of the bounds is exceeded by all but this share of the examples.", PROBABILITY
    )
    levels: int = option(16, "Values a layer that weights are rounded to before they are counted.", at_least(1))
    rounds: int = option(
        5, "Rounds of iterative pruning, each of a tenth of what is left, weights rewound.", at_least(0)
    )
    round_epochs: int = option(5, "Epochs of training in a round.", at_least(1))
    keep: float = option(0.99, "Probability of keeping a weight in the PAC-Bayes certificate.", PROBABILITY)
    draws: int = option(2000, "Monte Carlo draws of the certificate.", at_least(1))
    cushion_examples: int = option(20, "Examples on which the cushions of Arora et al. are measured.", at_least(1))
    sketch_sizes: tuple[int, ...] = option(
        (16, 24), "Orders of the matrices that are sketched, with commas.", at_least(4)
    )
    sketch_trials: int = option(6, "Random matrices for each size of sketch.", at_least(1))
    delta: float = option(0.05, "Probability with which a complete bound may fail.", PROBABILITY)
    seed: int = option(0, "Seed of everything.", at_least(0))
