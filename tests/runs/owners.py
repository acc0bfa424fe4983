"""Every function that keeps a run in a folder, on the smallest problem: what the tests of files and folders run on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import stochprune as sp
from stochprune import studies
from stochprune.cli import app
from stochprune.data import Batches
from stochprune.data.splits import split
from stochprune.pac_bayes import CertifyConfig, PriorConfig, SelfBoundConfig, certify, make_posterior, train_prior
from stochprune.studies.finetune import StudyConfig, run_study
from stochprune.studies.methods import Arm, ArmBlock, ImageMethodsConfig
from stochprune.studies.plan import Block
from stochprune.training import (
    FinetuneConfig,
    IMPConfig,
    SoftThresholdConfig,
    WeightConfig,
    imp,
    train_soft_threshold,
    train_weights,
)


def problem() -> tuple[Tensor, Tensor]:
    """48 examples of 6 features in 3 classes that a linear map separates."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(48, 6, generator=generator)
    return x, (x @ torch.randn(6, 3, generator=generator)).argmax(dim=1)


def loader() -> Batches:
    return Batches(*problem(), batch_size=16, seed=3)


def dense(hidden: int = 5) -> nn.Sequential:
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(
        torch.nn.utils.skip_init(nn.Linear, 6, hidden), nn.ReLU(), torch.nn.utils.skip_init(nn.Linear, hidden, 3)
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def run_finetune(out: Path, callbacks: tuple[object, ...] = ()) -> Any:
    model = sp.convert(dense(), keep_kept=0.6)
    found = sp.finetune(model, loader(), FinetuneConfig(epochs=2, checkpoint_every=2), out=out, callbacks=callbacks)
    return state(model), found.history


def run_weights(out: Path, callbacks: tuple[object, ...] = ()) -> Any:
    model = dense()
    config = WeightConfig(epochs=2, checkpoint_every=2, schedule="cosine")
    return train_weights(model, loader(), config, folder=out, callbacks=callbacks), state(model)


def run_soft_threshold(out: Path, callbacks: tuple[object, ...] = ()) -> Any:
    model = dense()
    masks = train_soft_threshold(
        model, loader(), SoftThresholdConfig(epochs=2, checkpoint_every=2), folder=out, callbacks=callbacks
    )
    return masks, state(model)


def run_imp(out: Path, callbacks: tuple[object, ...] = ()) -> Any:
    config = IMPConfig(sparsity=0.5, cycles=1, retrain_epochs=1, dense=WeightConfig(epochs=1, checkpoint_every=2))
    return imp(dense(), loader(), config, out=out, callbacks=callbacks)


def run_certificate(out: Path, callbacks: tuple[object, ...] = ()) -> Any:
    """A prior, self-bounded learning and the draws of a certificate, each with its checkpoint."""
    parts = split(*problem(), 0.5)
    prior = train_prior(dense(), parts.prior, PriorConfig(prior_epochs=1), folder=out / "prior", callbacks=callbacks)
    learning = SelfBoundConfig(epochs=2, batch_size=8, checkpoint_every=2)
    found = sp.self_bound(prior, parts.certify, learning, out=out, callbacks=callbacks)
    learnt = state(found.posterior.model)  # before certify moves its counters
    plan = CertifyConfig(draws=20, draw_examples=8)
    first = sp.certify(found.posterior, parts.certify, plan, folder=out / "learnt", callbacks=callbacks)
    second = certify(make_posterior(prior, "masks"), parts.certify, plan, folder=out / "control")
    return found.history, learnt, first.losses, second.losses


def run_initialisation(out: Path, callbacks: tuple[object, ...] = ()) -> Any:
    settings = studies.InitialisationConfig(
        per_class=1, batch_size=512, train_examples=512, weights=WeightConfig(epochs=1, checkpoint_every=2)
    )
    grid = (Block((("magnitude", ()),), (0.9,), ("none", "shuffle")),)
    plan = studies.Plan("tiny", "Tiny", "initialisation", ("digits",), ("lenet_300_100",), 1, grid, settings)
    found = studies.run(plan, out=out)[1]
    return {name: found[name] for name in ("rows", "layers", "distances")}


TINY_STUDY = StudyConfig(
    scores=("magnitude",),
    sparsities=(0.9,),
    seeds=1,
    dense_epochs=1,
    retrain_epochs=1,
    batch_size=512,
    draws=2,
    finetune=FinetuneConfig(epochs=1, checkpoint_every=2),
)


def run_finetune_study(out: Path, callbacks: tuple[object, ...] = ()) -> Any:
    return run_study(TINY_STUDY, out=out)[1]


def run_methods(out: Path, callbacks: tuple[object, ...] = ()) -> Any:
    """Without a clock: the seconds are in the tables and in the checkpoints."""
    dense = WeightConfig(epochs=1, checkpoint_every=2)
    settings = ImageMethodsConfig(dense, epochs=2, batch_size=512, train_examples=1024)
    arms = (
        Arm("gradual", "gradual_magnitude", (("checkpoint_every", 2), ("every", 1))),
        Arm("one-shot", "one_shot", (), retrain_epochs=1),
    )
    grid = (ArmBlock(arms, (0.9,)),)
    plan = studies.Plan("tiny", "Tiny", "methods", ("digits",), ("lenet_300_100",), 1, grid, settings)
    with mock.patch("stochprune.studies.processor_time.time", SimpleNamespace(process_time=lambda: 0.0)):
        return studies.run(plan, out=out)[1]["rows"]


TRAINERS: dict[str, Callable[..., Any]] = {
    "finetune": run_finetune,
    "train_weights": run_weights,
    "soft_threshold": run_soft_threshold,
    "imp": run_imp,
    "certificate": run_certificate,
}
"""The functions that take callbacks: they can be stopped after a step."""
OWNERS: dict[str, Callable[..., Any]] = {
    **TRAINERS,
    "initialisation": run_initialisation,
    "finetune study": run_finetune_study,
    "methods": run_methods,
}
STUDY = """
title: Two masks
job: initialisation
data: [digits]
models: [lenet_300_100]
seeds: 1
grid: [{scores: [magnitude], sparsities: [0.9], ablations: [none, shuffle]}]
settings: {batch_size: 512, weights: {epochs: 2, checkpoint_every: 2}}
"""
"""A study as a user writes it."""
COMMANDS = {
    "finetune": "--scores magnitude --sparsities 0.9 --seeds 1 --dense-epochs 1 --epochs 1 --retrain-epochs 1 "
    "--batch-size 512 --draws 2",
    "certify": "--posteriors masks --prior-epochs 1 --epochs 1 --draws 20",
    "study": "finetune --small",
    "bounds": "--layers 2 --epochs 1",
    "linear-lab": "--examples 20 --features 4 --steps 10 --pairs 2",
}
"""The commands that keep a run, with small options."""


def command(name: str, out: Path) -> None:
    """Run a command; raises SystemExit with its status."""
    app([name, *COMMANDS[name].split(), "--out", str(out)])
