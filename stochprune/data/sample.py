"""Random subsets of a training set."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from stochprune.arguments import checked
from stochprune.data.dataset import Dataset
from stochprune.seeding import generator


@checked
def per_class(dataset: Dataset, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return ``count`` training examples of each class, in random order: inputs [classes * count, ...] and labels.

    Raises:
        ValueError: ``count`` is below 1, or a class has fewer.
    """
    if count < 1:
        raise ValueError(f"the examples of each class must be at least 1, got {count}")
    numbers = generator(seed, "examples of each class")
    chosen = []
    for label in range(dataset.num_classes):
        members = (dataset.train_y == label).nonzero().flatten()
        if len(members) < count:
            raise ValueError(f"{dataset.name}: {count} examples per class are wanted, class {label} has {len(members)}")
        chosen.append(members[torch.from_numpy(numbers.permutation(len(members))[:count])])
    order = torch.cat(chosen)[torch.from_numpy(numbers.permutation(dataset.num_classes * count))]
    return dataset.train_x[order], dataset.train_y[order]


@checked
def subset(dataset: Dataset, examples: int) -> Dataset:
    """The data set with ``examples`` of its training examples, always the same ones; 0 means all.

    Raises:
        ValueError: a negative number, or more than the data set has.
    """
    if not 0 <= examples <= len(dataset.train_y):
        raise ValueError(f"{dataset.name} has {len(dataset.train_y)} training examples, asked for {examples}")
    if examples == 0:
        return dataset
    order = torch.from_numpy(generator(0, "subset").permutation(len(dataset.train_y))[:examples])
    return dataclasses.replace(dataset, train_x=dataset.train_x[order], train_y=dataset.train_y[order])
