"""Repetition of a whole run: the only check of what the prior has seen and of what was learnt."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch

from stochprune.arguments import checked
from stochprune.pac_bayes.certificate import Certificate
from stochprune.pac_bayes.run import CertifyRun
from stochprune.pac_bayes.verify import load_certificate, parsed_configuration


@dataclasses.dataclass(frozen=True)
class Rerun:
    """A stated certificate, and the same certificate made again.

    Attributes:
        differences: names of the fields that differ, computed ones too. Empty if the certificate is the result of its
            configuration on these data.
        made_with: versions, device, threads and backend that differ, as (stated, here); None if not recorded. They
            change the rounding and so the prior. So differences show a forgery only if this is empty; the certificate
            ``found`` holds in any case.
    """

    stated: Certificate
    found: Certificate
    differences: list[str]
    made_with: dict[str, tuple[Any, Any]]


@checked
def rerun(path: Path, *, data_dir: Path | None = None, device: str | torch.device = "cpu") -> Rerun:
    """Train the prior of a certificate again, learn the posterior, certify it, and compare.

    Only the configuration is read from the certificate, and nothing else from its folder.

    Args:
        path: a certificate of a run; the other files of its folder are not needed.
        device: use the device of the run, or rounding will differ. Another backend (``STOCHPRUNE_BACKEND``) rounds
            differently, too.

    Raises:
        ValueError: the certificate does not verify, or was not made by a run; an unknown device.
        FileNotFoundError: files of the data set are missing.
    """
    stated = load_certificate(path)
    if stated.configuration is None:
        raise ValueError(f"{path} carries no configuration of a run, so that nothing says how to make it again")
    config = parsed_configuration(stated.configuration, path)
    with tempfile.TemporaryDirectory(prefix="stochprune-rerun-") as folder:
        run = CertifyRun(config, data_dir, device)
        prior = run.prior(Path(folder))
        found, _ = run.certificate(prior, stated.notes["family"], stated.notes["objective"], Path(folder))
    one, other = ({**dataclasses.asdict(each), **each.account()} for each in (stated, found))
    made_with = _differences(one.pop("versions"), other.pop("versions"))
    return Rerun(stated, found, list(_differences(one, other)), made_with)


def _differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = {**one, **other}
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}
