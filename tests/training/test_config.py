"""Checks and digests of the configurations."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from stochprune.studies.finetune import StudyConfig
from stochprune.training.config import FinetuneConfig, WeightConfig, digest


def another(config, field):
    """A valid value of the field that differs from the configuration's."""
    value, kind = getattr(config, field.name), get_type_hints(type(config))[field.name]
    if get_origin(kind) is Literal:
        return next(choice for choice in get_args(kind) if choice != value)
    if isinstance(value, FinetuneConfig):
        return FinetuneConfig(epochs=value.epochs + 1)
    if isinstance(value, tuple):
        return value[:1]
    if isinstance(value, str):
        return value + "x"
    return value + 1 if isinstance(value, int) else (value + 0.5) / 2


@pytest.mark.parametrize("kind", [FinetuneConfig, WeightConfig, StudyConfig])
def test_digest_changes_with_each_field(kind):
    config = kind()
    digests = {digest(dataclasses.replace(config, **{f.name: another(config, f)})) for f in dataclasses.fields(kind)}
    assert len(digests) == len(dataclasses.fields(kind))
    assert digest(config) not in digests
    assert digest(config) == digest(kind())


def test_digest_can_leave_fields_out():
    assert digest(StudyConfig(seeds=1), exclude=("seeds",)) == digest(StudyConfig(seeds=2), exclude=("seeds",))


@pytest.mark.parametrize("kind", [FinetuneConfig, WeightConfig, StudyConfig])
def test_each_field_has_a_help_text(kind):
    missing = [f.name for f in dataclasses.fields(kind) if "help" not in f.metadata and f.name != "finetune"]
    assert missing == []


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (FinetuneConfig, {"epochs": -1}, "epochs must be an integer of at least 0, got -1"),
        (FinetuneConfig, {"epochs": 1.5}, "epochs must be an integer of at least 0, got 1.5"),
        (FinetuneConfig, {"logit_lr": 0.0}, "logit_lr must be positive and finite, got 0.0"),
        (FinetuneConfig, {"weight_lr": math.nan}, "weight_lr must be positive and finite, got nan"),
        (FinetuneConfig, {"temperature": math.inf}, "temperature must be positive and finite, got inf"),
        (FinetuneConfig, {"mode": "both"}, "mode must be one of joint, frozen, got 'both'"),
        (FinetuneConfig, {"budget": "x"}, "budget must be one of shift, penalty, kl, none, got 'x'"),
        (FinetuneConfig, {"checkpoint_every": 0}, "checkpoint_every must be an integer of at least 1, got 0"),
        (WeightConfig, {"lr": -1.0}, "lr must be positive and finite, got -1.0"),
        (StudyConfig, {"sparsities": (0.5, 1.2)}, r"sparsity must lie in \[0, 1\), got 1.2"),
        (StudyConfig, {"sparsities": (math.nan,)}, r"sparsity must lie in \[0, 1\), got nan"),
        (StudyConfig, {"scores": ()}, "scores must name at least one, each once, got none"),
        (StudyConfig, {"scores": ("snip", "snip")}, "each once, got snip, snip"),
        (StudyConfig, {"seeds": 0}, "seeds must be an integer of at least 1, got 0"),
        (StudyConfig, {"validation": 1.0}, r"validation must lie in \[0, 1\), got 1.0"),
    ],
)
def test_bad_values_are_named(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)
