"""Small data sets in memory, and mini-batches in a reproducible order."""

from stochprune.data.batch_loss import BatchLoss
from stochprune.data.batches import Batches
from stochprune.data.dataset import Dataset
from stochprune.data.idx import read_idx
from stochprune.data.sample import per_class, subset
from stochprune.data.sources import HELP, NAMES, cifar10, digits, idx, load, mnist
from stochprune.data.splits import Split, Subset, split

__all__ = [
    "HELP",
    "NAMES",
    "BatchLoss",
    "Batches",
    "Dataset",
    "Split",
    "Subset",
    "cifar10",
    "digits",
    "idx",
    "load",
    "mnist",
    "per_class",
    "read_idx",
    "split",
    "subset",
]
