"""The options of ``stochprune bounds``."""

from __future__ import annotations

from dataclasses import dataclass

from stochprune.data import HELP as DATA
from stochprune.runs.config import POSITIVE, PROBABILITY, Config, at_least, option


@dataclass(frozen=True)
class BoundsConfig(Config):
    """Configuration of one fully connected network without biases, with hidden layers of one width, and its bounds."""

    data: str = option("digits", DATA)
    layers: int = option(5, "Linear layers.", at_least(2))
    width: int = option(0, "Width of the hidden layers; 0: that of the inputs.", at_least(0))
    epochs: int = option(20, "Epochs of training.", at_least(1))
    batch_size: int = option(64, "Examples in a batch.", at_least(1))
    lr: float = option(1e-3, "Adam's learning rate; it falls by a cosine.", POSITIVE)
    train_fraction: float = option(
        0.8, "Fraction of the training set that trains the network; the bounds use the rest.", PROBABILITY
    )
    scales: tuple[float, ...] = option(
        (0.1, 0.5, 1.0, 2.0, 5.0, 10.0), "Scales d of the compression, separated by commas.", POSITIVE
    )
    margin_share: float = option(
        0.1, "Fraction of the examples whose margin may be smaller than the margin in the bounds.", PROBABILITY
    )
    levels: int = option(16, "Number of values per layer to which the counting bound rounds the weights.", at_least(1))
    rounds: int = option(
        5,
        "Rounds of iterative pruning. Each prunes a tenth of the remaining weights and rewinds the others.",
        at_least(0),
    )
    round_epochs: int = option(5, "Epochs of training in a round.", at_least(1))
    keep: float = option(0.99, "Probability of keeping a weight in the PAC-Bayes certificate.", PROBABILITY)
    draws: int = option(2000, "Monte Carlo draws of the certificate.", at_least(1))
    cushion_examples: int = option(20, "Examples on which the cushions of Arora et al. are measured.", at_least(1))
    sketch_sizes: tuple[int, ...] = option(
        (16, 24), "Orders of the matrices that are sketched, separated by commas.", at_least(4)
    )
    sketch_trials: int = option(6, "Random matrices for each size of sketch.", at_least(1))
    delta: float = option(0.05, "Probability with which a complete bound may fail.", PROBABILITY)
    seed: int = option(0, "Seed of everything.", at_least(0))
