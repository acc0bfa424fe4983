"""Arguments of ``stochprune.pac_bayes``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stochprune.pac_bayes import CertifyConfig, PriorConfig, RunConfig, SelfBoundConfig, make_posterior
from tests.fuzz.arguments.objects import dense, fields, masked, part, prior


def arguments() -> dict[str, Callable[[], dict[str, Any]]]:
    configs = (PriorConfig, SelfBoundConfig, CertifyConfig, RunConfig)
    learning = SelfBoundConfig(epochs=1, batch_size=10)
    sampling = CertifyConfig(draws=20, draw_examples=8)
    return {
        **{f"pac_bayes.{kind.__name__}": lambda kind=kind: fields(kind) for kind in configs},
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
            "config": sampling,
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
    }
