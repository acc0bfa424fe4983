"""Arguments of ``stochprune.scores`` and ``stochprune.masks``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F

from tests.fuzz.arguments.objects import dense, loader, masks, probabilities, scores, tensor


def arguments() -> dict[str, Callable[[], dict[str, Any]]]:
    examples = {"loss_fn": F.cross_entropy}
    trained = ("snip", "grasp", "force", "iterative_snip", "prospr", "wanda", "sparsegpt", "magnitude", "random")
    options: dict[str, dict[str, Any]] = {
        "snip": {"absolute": "mean"},
        "grasp": {"temperature": 200.0, "absolute": False},
        "force": {"sparsity": 0.5, "rounds": 2, "schedule": "exponential"},
        "iterative_snip": {"sparsity": 0.5, "rounds": 2, "schedule": "exponential"},
        "prospr": {"steps": 2, "lr": 0.1, "momentum": 0.9, "first_order": False, "structured": False},
        "sparsegpt": {"damping": 0.01},
        "random": {"seed": 0, "densities": None},
        "synflow": {"sparsity": 0.5, "rounds": 2, "input_shape": (6,)},
        "dissipating_gradients": {"epochs": 1, "lr": 0.1, "momentum": 0.9},
        "k_starts": {"sparsity": 0.5, "starts": 2, "epochs": 1, "lr": 0.1, "momentum": 0.9, "seed": 0},
    }
    named = (*trained, "synflow", "dissipating_gradients", "k_starts")
    return {
        **{
            f"scores.{name}": lambda name=name: {
                "model": dense(),
                **examples,
                "batches": loader(),
                **options.get(name, {}),
            }
            for name in named
        },
        "scores.by_name": lambda: {"name": "snip"},
        "scores.check_options": lambda: {"name": "prospr", "options": {"steps": 2}},
        "scores.compute": lambda: {
            "name": "snip",
            "model": dense(),
            **examples,
            "batches": loader(),
            "sparsity": 0.5,
            "seed": 0,
        },
        "scores.erk_densities": lambda: {"model": dense(), "sparsity": 0.5},
        "scores.prunable_weights": lambda: {"model": dense()},
        "scores.by_output": lambda: {"model": dense(), "values": scores()},
        "scores.admm_prune": lambda: {
            "model": dense(),
            "batches": loader(),
            "loss_fn": F.cross_entropy,
            "sparsity": 0.5,
            "damping": 0.1,
            "iterations": 3,
            "growing": 2,
            "include": "*",
            "exclude": "2.*",
        },
        "scores.sparsegpt_prune": lambda: {
            "model": dense(),
            "batches": loader(),
            "loss_fn": F.cross_entropy,
            "sparsity": 0.5,
            "damping": 0.01,
            "block": 4,
        },
        "masks.apply": lambda: {"model": dense(), "masks": masks()},
        "masks.expand": lambda: {"model": dense(), "masks": masks()},
        "masks.from_scores": lambda: {"scores": scores(), "sparsity": 0.5, "scope": "global", "allow_empty": False},
        "masks.invert": lambda: {"scores": scores()},
        "masks.keep_probabilities": lambda: {"scores": scores(), "keep": 0.9, "clamp": 2.0, "scope": "layer"},
        "masks.kept_weights": lambda: {"model": dense(), "masks": masks()},
        "masks.layer_statistics": lambda: {
            "model": dense(),
            "masks": masks(),
            "reference": masks(),
            "reference_model": dense(),
        },
        "masks.of": lambda: {"model": dense()},
        "masks.n_of_m": lambda: {"scores": {"a": tensor(4, 8)}, "n": 2, "m": 4},
        "masks.reinitialize": lambda: {"model": dense(), "masks": masks(), "seed": 0},
        "masks.rescale": lambda: {"model": dense(), "masks": masks()},
        "masks.shuffle": lambda: {"masks": masks(), "seed": 0},
        "masks.sparsity": lambda: {"masks": masks()},
        "masks.statistics": lambda: {
            "name": "a",
            "values": probabilities(),
            "shape": (2, 4),
            "other": probabilities()[:2],
        },
    }
