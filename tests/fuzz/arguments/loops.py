"""Arguments of the functions for loops of one's own, and of the options and callbacks of the trainers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import stochprune as sp
from stochprune.training import FinetuneConfig, LoopOptions, WeightConfig
from tests.fuzz.arguments.objects import dense, fields, loader, masked


def arguments() -> dict[str, Callable[[], dict[str, Any]]]:
    return {
        "masks.of": lambda: {"model": dense()},
        "training.Budget": lambda: {
            "model": masked(),
            "sparsity": 0.5,
            "kind": "penalty",
            "strength": 10.0,
            "schedule": "cubic",
            "steps": 5,
            "begin": 1,
        },
        "training.CSVLogger": lambda: {"folder": "empty"},
        "training.EMA": lambda: {"decay": 0.9},
        "training.EarlyStopping": lambda: {"monitor": "loss", "patience": 2, "mode": "min"},
        "training.LoopOptions": lambda: fields(LoopOptions),
        "training.TensorBoard": lambda: {"folder": "empty"},
        "training.Validation": lambda: {"loader": loader(), "metrics": {"error": sp.training.error}},
        "training.mask_loss": lambda: {
            "model": masked(),
            "l0": 0.1,
            "kl": 0.1,
            "prior_logits": 0.5,
            "accumulation": 2,
        },
        "training.parameter_groups": lambda: {"model": masked(), "lr": 0.1, "logit_lr": 0.1, "weight_decay": 0.1},
        "training.prune_finetune": lambda: {
            "model": dense(),
            "train_loader": loader(),
            "sparsity": 0.5,
            "score": "snip",
            "scope": "layer",
            "exclude": None,
            "config": FinetuneConfig(epochs=1),
            "weights": WeightConfig(epochs=1),
            "out": None,
            "callbacks": (),
        },
    }
