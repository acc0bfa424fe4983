"""Checks and digests of the configurations."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import re
from functools import partial
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch

import stochprune
from stochprune.runs.config import Config, digest
from stochprune.studies.finetune import StudyConfig
from stochprune.training.config import FinetuneConfig, WeightConfig

MODULES = [importlib.import_module(module.name) for module in pkgutil.walk_packages(stochprune.__path__, "stochprune.")]
CONFIGURATIONS = sorted(
    {
        kind
        for module in MODULES
        for kind in vars(module).values()
        if isinstance(kind, type)
        and dataclasses.is_dataclass(kind)
        and issubclass(kind, Config)
        and any("help" in field.metadata for field in dataclasses.fields(kind))
    },
    key=lambda kind: kind.__name__,
)


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


# A constant budget takes no sparsity.
@pytest.mark.parametrize("make", [partial(FinetuneConfig, budget_schedule="cubic"), WeightConfig, StudyConfig])
def test_digest_changes_with_each_field(make):
    config = make()
    fields = dataclasses.fields(config)
    digests = {digest(dataclasses.replace(config, **{f.name: another(config, f)})) for f in fields}
    assert len(digests) == len(fields)
    assert digest(config) not in digests
    assert digest(config) == digest(make())


def test_digest_can_leave_fields_out():
    assert digest(StudyConfig(seeds=1), exclude=("seeds",)) == digest(StudyConfig(seeds=2), exclude=("seeds",))


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_each_field_has_a_help_text(kind):
    missing = [
        f.name
        for f in dataclasses.fields(kind)
        if "help" not in f.metadata and not dataclasses.is_dataclass(get_type_hints(kind)[f.name])
    ]
    assert missing == []


NONSENSE = [None, math.nan, math.inf, -math.inf, -1, 1.5, True, "", "x", "1", [], [1], {}, (None,), ([],), (math.nan,)]
NONSENSE += [b"x", 10**400, -(10**400), 2**64, 1j, torch.tensor(1), torch.tensor([1.0, 2.0]), object(), dict]


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_no_field_takes_a_value_of_another_kind(kind):
    """Each field is given each kind of nonsense: it is refused by name, or is a value that the field may have."""
    for field in dataclasses.fields(kind):
        wanted, refused = get_type_hints(kind)[field.name], 0
        for value in NONSENSE:
            try:
                made = kind(**{field.name: value})
            except ValueError as error:
                assert "\n" not in str(error) and len(str(error)) < 500, error
                assert re.search(rf"\b({field.name}|{field.name[:-3]}y)\b", str(error)), error
                refused += 1
            else:
                assert allowed(wanted, value), f"{kind.__name__}({field.name}={value!r}) was taken"
                digest(made)
        assert refused > len(NONSENSE) // 2


def allowed(wanted, value) -> bool:
    if wanted is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is wanted and value not in (2**64, 10**400)


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_a_refusal_names_the_configuration_and_the_value(kind):
    first = dataclasses.fields(kind)[0].name
    with pytest.raises(ValueError, match=rf"{kind.__name__}: {first}.*got \[1, 2\]"):
        kind(**{first: [1, 2]})


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (FinetuneConfig, {"epochs": -1}, "epochs.*got -1"),
        (FinetuneConfig, {"epochs": 1.5}, "epochs.*got 1.5"),
        (FinetuneConfig, {"logit_lr": 0.0}, "logit_lr.*got 0.0"),
        (FinetuneConfig, {"weight_lr": math.nan}, "weight_lr.*got nan"),
        (FinetuneConfig, {"temperature": math.inf}, "temperature.*got inf"),
        (FinetuneConfig, {"mode": "both"}, "mode.*got 'both'"),
        (FinetuneConfig, {"budget": "x"}, "budget.*got 'x'"),
        (FinetuneConfig, {"checkpoint_every": 0}, "checkpoint_every.*got 0"),
        (WeightConfig, {"lr": -1.0}, "lr.*got -1.0"),
        (StudyConfig, {"sparsities": (0.5, 1.2)}, "sparsities.*got 1.2"),
        (StudyConfig, {"sparsities": (math.nan,)}, "sparsities.*nan"),
        (StudyConfig, {"scores": ()}, "scores.*got none"),
        (StudyConfig, {"scores": ("snip", "snip")}, "scores.*got snip, snip"),
        (StudyConfig, {"seeds": 0}, "seeds.*got 0"),
        (StudyConfig, {"validation": 1.0}, "validation.*got 1.0"),
    ],
)
def test_bad_values_are_named(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)
