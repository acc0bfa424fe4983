"""Arguments of ``stochprune.data`` and ``stochprune.models``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.arguments.objects import dataset, inputs, labels


def arguments() -> dict[str, Callable[[], dict[str, Any]]]:
    return {
        "data.BatchLoss": lambda: {"loss_fn": torch.nn.functional.mse_loss, "argument": "batches"},
        "data.Batches": lambda: {
            "x": inputs(),
            "y": labels(),
            "batch_size": 4,
            "seed": 0,
            "shuffle": True,
            "drop_last": False,
        },
        "data.Dataset": lambda: vars(dataset()).copy(),
        "data.cifar10": lambda: {"data_dir": Path("empty")},
        "data.mnist": lambda: {"data_dir": Path("empty")},
        "data.idx": lambda: {"data_dir": Path("empty")},
        "data.load": lambda: {"name": "mnist", "data_dir": Path("empty")},
        "data.digits": dict,
        "data.read_idx": lambda: {"path": Path("values.idx")},
        "data.split": lambda: {"x": inputs(40), "y": labels(40), "prior_fraction": 0.5, "seed": 0},
        "data.per_class": lambda: {"dataset": dataset(), "count": 2, "seed": 0},
        "data.subset": lambda: {"dataset": dataset(), "examples": 5},
        "models.build": lambda: {
            "name": "lenet_300_100",
            "dataset_shape": (1, 4, 4),
            "num_classes": 3,
            "seed": 0,
        },
        "models.gpt": lambda: {"vocabulary": 5, "context": 4, "width": 6, "depth": 1, "heads": 3, "seed": 0},
        "models.lenet_300_100": lambda: {"in_features": 6, "num_classes": 3, "seed": 0},
        "models.mlp": lambda: {"sizes": (6, 3), "seed": 0},
        "models.pbb_cnn": lambda: {"in_channels": 1, "size": (8, 8), "num_classes": 3, "seed": 0},
        "models.pbb_fc": lambda: {"in_features": 6, "num_classes": 3, "seed": 0},
        "models.resnet18": lambda: {
            "in_channels": 1,
            "num_classes": 3,
            "width": 2,
            "small_images": True,
            "seed": 0,
        },
        "models.mobilenet_v2": lambda: {"in_channels": 1, "num_classes": 3, "width": 0.1, "seed": 0},
        "models.resnet20": lambda: {"in_channels": 1, "num_classes": 3, "width": 2, "seed": 0},
        "models.small_cnn": lambda: {"in_channels": 1, "num_classes": 3, "width": 2, "seed": 0},
        "models.vgg6": lambda: {"in_channels": 1, "num_classes": 3, "width": 2, "seed": 0},
        "models.vgg16": lambda: {"in_channels": 1, "num_classes": 3, "width": 2, "seed": 0},
        "models.vit": lambda: {
            "in_channels": 1,
            "size": (8, 8),
            "num_classes": 3,
            "patch": 4,
            "width": 6,
            "depth": 1,
            "heads": 3,
            "seed": 0,
        },
    }
