"""A valid call of every public function: the fuzz changes its arguments one or two at a time.

A base is a function that makes fresh keyword arguments. A new public function without one fails ``test_fuzz.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stochprune as sp
from stochprune.data import Batches, Dataset
from stochprune.data.splits import Subset, split
from stochprune.nn import registry
from stochprune.pac_bayes import CertifyConfig, Prior, PriorConfig, RunConfig, SelfBoundConfig, make_posterior
from stochprune.training import FinetuneConfig, IMPConfig, SoftThresholdConfig, WeightConfig

MODULES = (sp, sp.functional, sp.nn, sp.masks, sp.scores, sp.bounds, sp.rng, sp.data, sp.training, sp.pac_bayes)
MODULES += (sp.models,)
Base = tuple[Callable[..., Any], Callable[[], dict[str, Any]]]


def tensor(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


def inputs(count: int = 12) -> Tensor:
    return tensor(count, 6)


def labels(count: int = 12) -> Tensor:
    return torch.arange(count) % 3


def dense() -> nn.Module:
    return nn.Sequential(sp.models.mlp((6, 5), seed=0), nn.ReLU(), sp.models.mlp((5, 3), seed=1))


def names() -> list[str]:
    return list(sp.scores.prunable_weights(dense()))


def masks() -> dict[str, Tensor]:
    return {name: tensor(*w.shape) > -0.5 for name, w in sp.scores.prunable_weights(dense()).items()}


def scores() -> dict[str, Tensor]:
    return {name: tensor(*w.shape) for name, w in sp.scores.prunable_weights(dense()).items()}


def masked() -> nn.Module:
    return sp.convert(dense(), masks(), seed=5)


def loader() -> Batches:
    return Batches(inputs(), labels(), 6)


def dataset() -> Dataset:
    return Dataset("mine", inputs(), labels(), inputs(6), labels(6), 3)


def part() -> Subset:
    parts = split(inputs(40), labels(40), 0.5)
    assert parts.prior is not None
    return parts.certify


def prior() -> Prior:
    known = split(inputs(40), labels(40), 0.5).prior
    assert known is not None
    return Prior(sp.convert(dense(), keep_kept=0.9), (known,))


def probabilities() -> np.ndarray:
    return np.array([0.0, 0.5, 0.25, 1.0, 0.0])


ADDRESS = {"seed": 7, "draw": 3, "stream": 11}
MASK = {**ADDRESS, "estimator": "straight_through", "temperature": 1.0, "samples": 2}
WINDOW = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
RISK = {"risk": 0.1, "kl": 5.0, "m": 100, "delta": 0.05, "choices": 1}


def linear(**more: Any) -> dict[str, Any]:
    return {"x": tensor(4, 8), "weight": tensor(5, 8), "logits": tensor(5, 8), "bias": tensor(5), **MASK, **more}


def conv(dimensions: int, transposed: bool = False) -> dict[str, Any]:
    x, weight = tensor(2, 3, *(5,) * dimensions), tensor(*((3, 4) if transposed else (4, 3)), *(2,) * dimensions)
    window = {**WINDOW, "output_padding": 0} if transposed else WINDOW
    return {"x": x, "weight": weight, "logits": weight.clone(), "bias": tensor(4), **MASK, **window}


def without(values: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


def functions() -> dict[str, Callable[[], dict[str, Any]]]:
    convs = {f"functional.masked_conv{n}d": lambda n=n: conv(n) for n in (1, 2, 3)}
    convs |= {f"functional.masked_conv_transpose{n}d": lambda n=n: conv(n, True) for n in (1, 2, 3)}
    gaussian = {"mu": tensor(5, 8), "sigma": tensor(5, 8).exp()}
    priors = {"prior_mu": 0.0, "prior_sigma": 1.0}
    image = {**without(conv(2), "estimator", "temperature"), "rho": tensor(4, 3, 2, 2)}
    return {
        **convs,
        "functional.keep_mask": lambda: {
            "threshold": sp.rng.threshold_from_logits(tensor(5, 8)),
            **ADDRESS,
            "row_offset": 0,
            "col_offset": 0,
        },
        "functional.mask": lambda: {"logits": tensor(5, 8), **MASK},
        "functional.masked_linear": linear,
        "functional.masked_linear_blocks": lambda: (
            linear(x=tensor(4, 16), weight=tensor(8, 16), logits=tensor(2, 4)) | {"bias": tensor(8)}
        ),
        "functional.masked_linear_kl": lambda: linear(prior_logits=tensor(5, 8)),
        "functional.masked_linear_nm": lambda: without(linear(pattern="2:4"), "estimator", "temperature"),
        "functional.masked_embedding": lambda: (
            without(linear(), "x", "bias") | {"indices": torch.tensor([[0, 4]]), "padding_idx": None}
        ),
        "functional.masked_weights": lambda: {
            "weights": [tensor(5, 8), tensor(3, 5)],
            "logits": [tensor(5, 8), tensor(3, 5)],
            "seeds": torch.tensor([7, 8]),
            "draws": torch.tensor([0, 1]),
            "streams": [3, 4],
            "estimator": "straight_through",
            "temperature": 1.0,
            "dtype": torch.float32,
        },
        "functional.bernoulli_kl": lambda: {"logits": tensor(5, 8), "prior_logits": 0.5},
        "functional.gaussian_kl": lambda: {**gaussian, **priors},
        "functional.spike_and_slab_kl": lambda: {"logits": tensor(5, 8), **gaussian, "prior_logits": 0.5, **priors},
        "functional.spike_and_slab_linear": lambda: (
            without(linear(), "weight") | {"mu": tensor(5, 8), "rho": tensor(5, 8)}
        ),
        "functional.spike_and_slab_conv": lambda: (
            without(conv(2), "weight") | {"mu": tensor(4, 3, 2, 2), "rho": tensor(4, 3, 2, 2)}
        ),
        "functional.local_reparameterised_linear": lambda: (
            without(linear(rho=tensor(5, 8)), "estimator", "temperature") | {"row_offset": 0}
        ),
        "functional.local_reparameterised_conv": lambda: {**image, "row_offset": 0},
        "functional.hard_concrete_gate": lambda: {"logits": tensor(5, 8)},
        "functional.expected_l0": lambda: {"logits": tensor(5, 8), "temperature": 1.0},
        "functional.nm_inclusion": lambda: {"logits": tensor(5, 8), "pattern": "2:4"},
        "functional.nm_keep_mask": lambda: {"logits": tensor(5, 8), "pattern": "2:4", **ADDRESS},
        "functional.nm_kl": lambda: {"logits": tensor(5, 8), "prior_logits": 0.0, "pattern": "2:4"},
        "functional.antithetic_gradient": lambda: {
            "loss": lambda masks: sum(mask.sum() for mask in masks.values()),
            "logits": {"a": tensor(5, 8)},
            "seed": 7,
            "draw": 3,
            "streams": {"a": 11},
            "estimator": "disarm",
        },
        "rng.check_address": lambda: {**ADDRESS, "rows": 2, "cols": 2, "row_offset": 0, "col_offset": 0},
        "rng.philox4x32": lambda: {"counter": (torch.tensor([1]),) * 4, "key": (1, 2), "rounds": 7},
        "rng.as_int64": lambda: {"value": 7},
        "rng.uniform16": lambda: {"rows": 2, "cols": 3, **ADDRESS, "row_offset": 0, "col_offset": 0, "device": "cpu"},
        "rng.normal": lambda: {"rows": 2, "cols": 3, **ADDRESS, "row_offset": 0, "col_offset": 0, "device": "cpu"},
        "rng.threshold_from_logits": lambda: {"logits": tensor(5, 8)},
        "rng.stream": lambda: {"name": "a.weight"},
        "rng.streams": lambda: {"names": ["a.weight", "b.weight"]},
    }


# Made from a dense module alone.
MASKED_MODULES = [*sorted(kind.__name__ for kind in registry.MODULES), "MaskedModule"]


def layers() -> dict[str, Callable[[], dict[str, Any]]]:
    options = {"keep": 0.9, "estimator": "straight_through", "temperature": 1.0, "seed": 0, "stream": 3}
    wide = {"in_features": 8, "out_features": 4, "bias": True, **options}
    window = {"in_channels": 4, "out_channels": 4, "kernel_size": 2, "stride": 1, "padding": 0, **options}
    shape = {"num_embeddings": 5, "embedding_dim": 4, "padding_idx": 0, **options}
    kinds = [f"{kind}{n}d" for kind in ("MaskedConv", "MaskedConvTranspose", "FilterMaskedConv") for n in (1, 2, 3)]
    return {
        **{f"nn.{kind}": lambda: dict(window) for kind in kinds},
        "nn.MaskedLinear": lambda: dict(wide),
        "nn.MaskedTransposedLinear": lambda: {"nf": 4, "nx": 8, **options},
        "nn.MaskedEmbedding": lambda: dict(shape),
        **{f"nn.{name}": lambda: dict(options) for name in MASKED_MODULES},
        "nn.register": lambda: {"dense_type": nn.Linear, "masked_type": sp.nn.MaskedLinear},
        "nn.NMMaskedLinear": lambda: without(wide | {"pattern": "2:4"}, "estimator", "temperature", "keep"),
        "nn.StructuredMaskedLinear": lambda: wide | {"structure": "rows"},
        "nn.GatedBranch": lambda: {"branch": sp.models.mlp((6, 6), seed=0), "keep": 0.9},
        "nn.masked_layers": lambda: {"model": masked()},
        "nn.antithetic_gradients": lambda: {
            "model": masked(),
            "loss": lambda model: model(inputs()).sum(),
            "draw": 0,
            "estimator": "disarm",
        },
        "nn.convert": lambda: {
            "model": dense(),
            "masks": masks(),
            "keep_kept": 0.95,
            "keep_pruned": 0.05,
            "include": None,
            "exclude": None,
            "pattern": None,
            "allow_subclasses": False,
            "seed": 0,
        },
        "nn.harden": lambda: {"model": masked(), "sparsity": 0.25, "scope": "global"},
        "nn.gate_branches": lambda: {"model": dense(), "names": "1", "keep": 0.9, "seed": 0},
        "nn.drop_branches": lambda: {"model": sp.nn.gate_branches(dense(), "1", 0.9)},
        "nn.expected_cost": lambda: {"model": sp.nn.gate_branches(dense(), "1", 0.9), "costs": {"1": 1.0}},
        "nn.layer_kl": lambda: {"model": masked(), "prior_logits": dict.fromkeys(names(), 0.0)},
        "nn.batched_samples": lambda: {"model": masked(), "draws": 2},
        "nn.fused_masking": lambda: {"model": masked()},
        "nn.sampling": lambda: {"model": masked(), "enabled": True},
        "nn.semi_structured": lambda: {"model": dense()},
    }


def tools() -> dict[str, Callable[[], dict[str, Any]]]:
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
        "scores.sparsegpt_prune": lambda: {
            "model": dense(),
            "batches": loader(),
            "sparsity": 0.5,
            "damping": 0.01,
            "block": 4,
        },
        "masks.apply": lambda: {"model": dense(), "masks": masks()},
        "masks.expand": lambda: {"model": dense(), "masks": masks()},
        "masks.from_scores": lambda: {"scores": scores(), "sparsity": 0.5, "scope": "global", "allow_empty": False},
        "masks.kept_weights": lambda: {"model": dense(), "masks": masks()},
        "masks.layer_statistics": lambda: {
            "model": dense(),
            "masks": masks(),
            "reference": masks(),
            "reference_model": dense(),
        },
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
        "models.resnet20": lambda: {"in_channels": 1, "num_classes": 3, "width": 2, "seed": 0},
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


def trainers() -> dict[str, Callable[[], dict[str, Any]]]:
    once = {"loss_fn": F.cross_entropy, "callbacks": ()}
    annealing = {"start": 0.5, "end": 0.25, "steps": 10, "begin": 0}
    configs = (FinetuneConfig, WeightConfig, SoftThresholdConfig)
    bounds = (PriorConfig, SelfBoundConfig, CertifyConfig, RunConfig)
    learning = SelfBoundConfig(epochs=1, batch_size=10)
    drawing = CertifyConfig(draws=20, draw_examples=8)
    return {
        **{f"training.{kind.__name__}": lambda kind=kind: fields(kind) for kind in (*configs, IMPConfig)},
        **{f"pac_bayes.{kind.__name__}": lambda kind=kind: fields(kind) for kind in bounds},
        **{f"training.{name}": lambda: dict(annealing) for name in ("Temperature", "Sparsity", "PriorStrength")},
        "training.ProgressBar": lambda: {"title": "x", "total": 3},
        "training.PruneEarly": lambda: {"masks": lambda model: masks(), "threshold": 0.9, "window": 2},
        "training.early_pruning_indicator": lambda: {"kept": [{"a": 3}, {"a": 4}, {"a": 4}], "window": 2},
        "training.error": lambda: {"outputs": tensor(12, 3), "y": labels()},
        "training.predict": lambda: {"model": dense(), "x": inputs(), "batch_size": 5},
        "training.stochastic_error": lambda: {"model": masked(), "x": inputs(), "y": labels(), "draws": 2},
        "training.soft_threshold": lambda: {"weight": tensor(5, 8), "threshold": torch.tensor(0.1)},
        "training.finetune": lambda: {
            "model": masked(),
            "train_loader": loader(),
            "config": FinetuneConfig(epochs=1),
            "out": None,
            **once,
        },
        "training.imp": lambda: {
            "model": dense(),
            "train_loader": loader(),
            "config": IMPConfig(cycles=1, retrain_epochs=1, dense=WeightConfig(epochs=1), sparsity=0.5),
            "out": None,
            **once,
        },
        "training.train_soft_threshold": lambda: {
            "model": dense(),
            "train_loader": loader(),
            "config": SoftThresholdConfig(epochs=1),
            "folder": None,
            **once,
        },
        "training.train_weights": lambda: {
            "model": dense(),
            "train_loader": loader(),
            "config": WeightConfig(epochs=1),
            "masks": masks(),
            "schedule": None,
            "folder": None,
            "identity": "x",
            **once,
        },
        "pac_bayes.Prior": lambda: {"model": masked(), "seen": (part(),), "sigma": 0.01},
        "pac_bayes.Posterior": lambda: {"prior": prior()},
        "pac_bayes.make_posterior": lambda: {"prior": prior(), "family": "masks"},
        "pac_bayes.train_prior": lambda: {
            "model": dense(),
            "part": part(),
            "config": PriorConfig(prior_epochs=1),
            "seed": 0,
            "folder": None,
            "callbacks": (),
        },
        "pac_bayes.self_bound": lambda: {
            "prior": prior(),
            "part": part(),
            "config": learning,
            "family": "masks",
            "delta": 0.025,
            "seed": 0,
            "out": None,
            "callbacks": (),
        },
        "pac_bayes.certify": lambda: {
            "posterior": make_posterior(prior(), "masks"),
            "part": part(),
            "config": drawing,
            "priors": 1,
            "posteriors": 1,
            "seed": 0,
            "data": "mine",
            "folder": None,
            "callbacks": (),
        },
        "pac_bayes.load_certificate": lambda: {"path": Path("values.json")},
        "pac_bayes.replay": lambda: {
            "path": Path("values.json"),
            "draw": 0,
            "data_dir": None,
            "device": "cpu",
            "sample": 2,
        },
        "pac_bayes.rerun": lambda: {"path": Path("values.json"), "data_dir": None, "device": "cpu"},
        "pac_bayes.run_certify": lambda: {
            "config": RunConfig(data="mnist"),
            "data_dir": Path("empty"),
            "out": Path("runs"),
            "device": "cpu",
        },
        "bounds.betting": lambda: {"values": probabilities(), "delta": 0.05, "choices": 1, "planned": 5},
        "bounds.catoni": lambda: {**RISK, "beta": 1.0},
        "bounds.chernoff": lambda: without(RISK, "kl"),
        "bounds.complexity": lambda: without(RISK, "risk"),
        "bounds.kl": lambda: {"q": 0.1, "p": 0.2},
        "bounds.kl_inverse": lambda: {"q": 0.1, "c": 0.2},
        "bounds.lam": lambda: {**RISK, "lam": 1.0},
        "bounds.monte_carlo": lambda: {"mean": 0.1, "draws": 100, "delta": 0.05, "choices": 1},
        **{
            f"bounds.{name}": lambda: dict(RISK)
            for name in ("maurer", "mcallester", "quadratic", "tolstikhin_seldin", "optimal_lambda")
        },
    }


def fields(kind: type) -> dict[str, Any]:
    made = kind()
    return {field.name: getattr(made, field.name) for field in dataclasses.fields(kind)}


def calls() -> dict[str, Callable[[], dict[str, Any]]]:
    """Methods that take a user's tensors."""
    small = {"nn.MaskedLinear.__call__": (lambda: sp.nn.MaskedLinear(8, 4), (4, 8))}
    small["nn.MaskedConv2d.__call__"] = (lambda: sp.nn.MaskedConv2d(3, 4, 2), (2, 3, 5, 5))
    small["nn.NMMaskedLinear.__call__"] = (lambda: sp.nn.NMMaskedLinear(8, 4), (4, 8))
    made = {
        name: lambda make=make, shape=shape: {"self": make(), "x": tensor(*shape)}
        for name, (make, shape) in small.items()
    }
    return {
        **made,
        "nn.MaskedLinear.from_linear": lambda: {"linear": sp.models.mlp((8, 4), seed=0).fc1, "keep": 0.9},
        "data.Batches.set_epoch": lambda: {"self": loader(), "epoch": 1},
    }


# Records that the package gives out and nobody makes, exceptions and types.
NO_CALL = {"CheckpointError", "Score", "StochasticError", "FinetuneResult", "SelfBoundResult", "IMPRound"}
NO_CALL |= {"Certificate", "Replay", "Rerun", "LayerStatistics", "UnmaskedWeightsWarning", "integer", "Subset", "Split"}
NO_CALL |= {"one_launch", "many_draws"}  # deprecated aliases


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public callable of the package's modules, by the name of the first module that has it."""
    seen: set[int] = set()
    for module in (*MODULES[1:], sp):
        short = module.__name__.removeprefix("stochprune").removeprefix(".")
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__]
        for name in getattr(module, "__all__", own):
            value = getattr(module, name)
            if not callable(value) or isinstance(value, ModuleType) or name[0] == "_" or name in NO_CALL:
                continue
            if id(value) not in seen:
                seen.add(id(value))
                yield f"{short}.{name}".lstrip("."), value


def bases() -> dict[str, Base]:
    """The callable and its base arguments, by name."""
    found = dict(public())
    found |= {name: _method(name) for name in calls()}
    arguments = functions() | layers() | tools() | trainers() | calls()
    return {name: (found[name], arguments[name]) for name in arguments if name in found}


def _method(name: str) -> Callable[..., Any]:
    module, kind, method = name.split(".")
    owner = getattr(getattr(sp, module), kind)
    if method == "__call__":
        return lambda self, x: self(x)
    return getattr(owner, method)
