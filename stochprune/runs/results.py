"""Results: the versions that they depend on, and dataclasses read from their files."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

import torch

import stochprune
from stochprune.arguments import is_finite
from stochprune.runs.device import device_name
from stochprune.runs.files import require

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")


def versions(device: torch.device | None = None) -> dict[str, str]:
    """Return the versions of the software that a result depends on, and the device, if given."""
    found = {
        "stochprune": stochprune.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
    }
    return found if device is None else found | {"device": device_name(device)}


def json_history(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a history with None in the place of NaN and infinity, such as those of a metric: JSON has neither."""
    return [{name: value if is_finite(value) else None for name, value in entry.items()} for entry in history]


def record_of(kind: type[Record], content: Any, path: Path) -> Record:
    """Return the dataclass of which ``dataclasses.asdict`` made ``content``; keys that are no fields are left out.

    Args:
        kind: the dataclass; its fields are what JSON holds, or lists of such dataclasses.
        path: the file, for messages. Files of earlier versions may lack fields with the default None.

    Raises:
        CheckpointError: ``content`` is not a mapping, lacks a field, or has one of another type.
    """
    plain = get_origin(kind) or kind
    hints = get_type_hints(plain)
    if isinstance(content, dict):
        later = {field.name: None for field in dataclasses.fields(plain) if field.default is None}
        content = later | {name: _read(hints.get(name), value, path) for name, value in content.items()}
    whole = require(content, hints, path)
    return kind(**{name: whole[name] for name in hints})


def _read(kind: Any, value: Any, path: Path) -> Any:
    inner = get_args(kind)
    if get_origin(kind) is list and dataclasses.is_dataclass(inner[0]) and isinstance(value, list):
        return [record_of(inner[0], item, path) for item in value]  # type: ignore[arg-type]
    return value
