"""Small data sets, held in memory, and mini-batches whose order can be repeated."""

from stochprune.data.batches import Batches
from stochprune.data.dataset import Dataset
from stochprune.data.idx import read_idx
from stochprune.data.sources import digits, load, mnist

__all__ = ["Batches", "Dataset", "digits", "load", "mnist", "read_idx"]
