"""Reading and verification of a certificate: every number that follows from others is computed again."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stochprune.arguments import checked
from stochprune.data.splits import digests_of_split
from stochprune.pac_bayes.certificate import FINE, FORMAT, Certificate, mask_seed
from stochprune.pac_bayes.config import CertifyConfig, PriorConfig, RunConfig, SelfBoundConfig
from stochprune.runs.files import CheckpointError, read_json

CONTROL = "prior"
"""Used instead of an objective: the certificate of the prior itself, at KL = 0, on the same examples."""
CONFIGURATION = "configuration.json"
"""The name of the configuration's file, beside the certificates of a run."""
_LARGEST = 10**7
"""Maximum number of examples of a data set whose split is computed again."""


@checked
def load_certificate(path: Path) -> Certificate:
    """Read a certificate and verify it.

    The bound is recomputed from the losses and the KL. The probabilities, the numbers of draws, priors and posteriors,
    the seeds, and the sizes and digests of both parts of the data are recomputed from the configuration in the
    certificate. If ``configuration.json`` is beside the file, it must be the same. A certificate made outside a run has
    no configuration; these numbers are then taken as stated.

    The draws and the training are not checked here: :func:`stochprune.pac_bayes.replay` repeats draws, and
    :func:`stochprune.pac_bayes.rerun` repeats the training.

    Raises:
        ValueError: the file is not a certificate, is damaged or has another format, or has a number that does not
            follow from the others. The message names file and field.
    """
    content = _read(path, "certificate")
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{path} has the format {content.get('format')!r}, but this version reads {FORMAT}: older certificates "
            "lack the digests that it verifies. Run stochprune certify again to make a new one"
        )
    fields = [field.name for field in dataclasses.fields(Certificate)]
    if missing := [name for name in (*fields, "digests") if name not in content]:
        raise ValueError(f"{path} lacks {missing[0]!r}: it is damaged, or not a certificate of this version")
    certificate = Certificate(**{name: content[name] for name in fields})
    _check_fields(certificate, path)
    if certificate.configuration is not None:
        _check_configuration(certificate, path)
    for name, value in certificate.account().items():
        stated: Any = content.get(name)
        if type(stated) not in (int, float) or not math.isclose(stated, value, rel_tol=1e-9, abs_tol=1e-12):
            raise ValueError(f"{path} states {name} = {stated}, but its other numbers give {value}")
    for name, digest in certificate.digests().items():
        if not isinstance(content["digests"], dict) or content["digests"].get(name) != digest:
            raise ValueError(f"{path}: the digests must have {digest} for {name}, the digest of what the file contains")
    return certificate


def read_configuration(path: Path) -> RunConfig:
    """Read the configuration of a run from its ``configuration.json``.

    Raises:
        ValueError: the file cannot be read, is damaged, or is not the configuration of a run.
    """
    return parsed_configuration(_read(path, "configuration"), path)


def parsed_configuration(content: Any, path: Path) -> RunConfig:
    """Return the configuration in the content of a file.

    Raises:
        ValueError: the content is not a configuration; the message names the file.
    """
    try:
        values = dict(content)
        for name, kind in (("prior", PriorConfig), ("self_bound", SelfBoundConfig), ("certify", CertifyConfig)):
            values[name] = kind(**values[name])
        for name in ("posteriors", "objectives"):
            values[name] = tuple(values[name])
        return RunConfig(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not the configuration of a certificate's run: {error}") from error


def counts(config: RunConfig) -> tuple[int, int]:
    """Return the numbers of priors and certificates of a run and before it, among which one may choose afterwards."""
    return len(config.posteriors) + config.tried_priors, len(rows(config)) + config.tried_certificates


def rows(config: RunConfig) -> list[tuple[str, str]]:
    """Return family and objective of each certificate of a run; the objective of a control is ``CONTROL``."""
    return list(itertools.product(config.posteriors, (CONTROL, *config.objectives)))


def _read(path: Path, what: str) -> dict[str, Any]:
    try:
        return read_json(path, what)
    except CheckpointError as error:
        raise ValueError(str(error)) from error


def _whole(low: int, high: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _between(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and low < value < high


def _list_of(valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: type(value) is list and all(map(valid, value))


def _is_digest(value: Any) -> bool:
    return type(value) is str and re.fullmatch("[0-9a-f]{64}", value) is not None


def _are_nats(value: Any) -> bool:
    return (
        type(value) is dict
        and value != {}
        and all(type(v) in (int, float) and 0 <= v < math.inf for v in value.values())
    )


_COUNT = (_whole(1, 1 << 53), "must be an integer of at least 1")
_LEVEL = (_between(0, 1), "must lie strictly between 0 and 1")
_DIGEST = (_is_digest, "must be a digest of 64 hexadecimal digits")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("m", "priors", "posteriors", "planned"), _COUNT),
    **dict.fromkeys(("delta", "delta_draws"), _LEVEL),
    **dict.fromkeys(("dataset", "prior", "model", "certified"), _DIGEST),
    "kl": (_are_nats, "must hold a divergence of each weight, none of them negative, infinite or no number"),
    "loss": (lambda value: value in ("zero_one", "cross_entropy"), "must be zero_one or cross_entropy"),
    "monte_carlo": (lambda value: value in ("betting", "kl"), "must be betting or kl"),
    "unit": (lambda value: type(value) in (int, float) and 0 < value <= 1, "must lie in (0, 1]"),
    "losses": (_list_of(_whole(0)), "must be integers of at least 0"),
    "draw_examples": (_whole(0), "must be an integer of at least 0"),
    "seed": (_whole(0, (1 << 64) - 1), "must be an integer in 0 .. 2^64 - 1"),
    "mask_seed": (_whole(0), "must be an integer of at least 0"),
    "data": (lambda value: type(value) is str, "must be a text"),
    "prior_saw": (_list_of(_is_digest), "must hold digests"),
    "prior_sizes": (_list_of(_whole(1)), "must hold integers of at least 1"),
    "configuration": (lambda value: value is None or type(value) is dict, "must be an object or null"),
    "versions": (lambda value: type(value) is dict, "must be an object"),
    "notes": (lambda value: type(value) is dict, "must be an object"),
}


def _check_fields(certificate: Certificate, path: Path) -> None:
    """Check each field by itself, and fields that follow from others without a configuration."""
    for name, (valid, text) in _RULES.items():
        if not valid(value := getattr(certificate, name)):
            raise ValueError(f"{path}: {name} {text}, got {value!r:.200}")
    if certificate.delta + certificate.delta_draws >= 1:
        raise ValueError(
            f"{path}: delta + delta_draws must lie below 1, got {certificate.delta} + {certificate.delta_draws}"
        )
    per_draw = certificate.draw_examples or certificate.m
    unit = 1 / per_draw if certificate.loss == "zero_one" else FINE
    largest = per_draw if certificate.loss == "zero_one" else round(1 / FINE)
    _require(path, "unit", certificate.unit, unit, f"a {certificate.loss} loss of {per_draw} examples")
    if len(certificate.losses) != certificate.planned:
        raise ValueError(f"{path}: losses has {len(certificate.losses)} draws, but {certificate.planned} are planned")
    if max(certificate.losses) > largest:
        raise ValueError(f"{path}: losses must be integers in 0 .. {largest}, got {max(certificate.losses)}")
    if len(certificate.prior_saw) != len(certificate.prior_sizes) or certificate.certified in certificate.prior_saw:
        raise ValueError(
            f"{path}: prior_saw must differ from certified, and prior_sizes must have one number for each of prior_saw"
        )
    _require(path, "mask_seed", certificate.mask_seed, mask_seed(certificate.seed), f"seed {certificate.seed}")


def _check_configuration(certificate: Certificate, path: Path) -> None:
    """Check what follows from the configuration of a run."""
    config, beside = parsed_configuration(certificate.configuration, path), path.parent / CONFIGURATION
    if beside.exists() and read_configuration(beside) != config:
        raise ValueError(f"{beside} is not the configuration in {path}")
    priors, posteriors = counts(config)
    plan = {"planned": config.certify.draws, **dataclasses.asdict(config.certify)}
    del plan["draws"]
    claims = {"data": config.data, "seed": config.seed, "priors": priors, "posteriors": posteriors, **plan}
    for name, value in claims.items():
        _require(path, name, getattr(certificate, name), value, "its configuration")
    row = (certificate.notes.get("family"), certificate.notes.get("objective"))
    if row not in rows(config):
        raise ValueError(f"{path}: notes name the posterior {row}, which its configuration lacks")
    if (count := certificate.m + sum(certificate.prior_sizes)) > _LARGEST:
        raise ValueError(f"{path}: m and prior_sizes sum to {count} examples; a run's data set has at most {_LARGEST}")
    *seen, certified = digests_of_split(certificate.dataset, count, config.prior.prior_fraction, config.seed)
    why = f"the split of {count} examples"
    _require(path, "m", certificate.m, certified[1], why)
    _require(path, "prior_sizes", certificate.prior_sizes, [size for _, size in seen], why)
    _require(path, "certified", certificate.certified, certified[0], why)
    _require(path, "prior_saw", certificate.prior_saw, [digest for digest, _ in seen], why)


def _require(path: Path, name: str, stated: object, expected: object, source: str) -> None:
    if stated != expected:
        raise ValueError(f"{path}: {name} is {stated}, but {source} gives {expected}")
