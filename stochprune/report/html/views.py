"""Which view shows a file, by the keys that it has."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from stochprune.bench import KIND
from stochprune.report.html.bench import is_layers, is_networks, layers_view, networks_view
from stochprune.report.html.certify import certificate_view, certify_view
from stochprune.report.html.curves import history_figure
from stochprune.report.html.finetune import finetune_view
from stochprune.report.html.parts import View, flattened, table_of
from stochprune.report.html.sources import Source, SourceError
from stochprune.report.html.study import study_view
from stochprune.report.html.suite import suite_view


def view_of(source: Source) -> View:
    """Return the view of a run; results of other programs become tables.

    Raises:
        SourceError: the file lacks what its kind of run holds, or is empty.
    """
    view = _kind(source.content)
    try:
        found = view(source)
        for figure in found.figures:
            for panel in figure.panels:
                json.dumps(panel.spec, allow_nan=False)  # a browser reads neither NaN nor Infinity
        return found
    except SourceError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:  # a stranger's
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        kind = view.__name__.removesuffix("_view")
        raise SourceError(f"{source.path} is not the result of a run ({kind}): {what}") from error


def _kind(content: Mapping[str, Any]) -> Callable[[Source], View]:
    rows = content.get("rows")
    first = rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], Mapping) else {}
    if content.get("kind") == KIND:
        return suite_view
    if "losses" in content and "kl" in content:
        return certificate_view
    if "cells" in content and "dense" in content:
        return finetune_view
    if {"family", "bound", "kl"} <= set(first):
        return certify_view
    if {"score", "arm", "error"} <= set(first):
        return study_view
    if is_layers(first):
        return layers_view
    if is_networks(first):
        return networks_view
    return other_view


def other_view(source: Source) -> View:
    """Return a table for each list of a file, and its numbers and texts as facts."""
    content = dict(source.content)
    result = content.get("result")
    if isinstance(result, Mapping):  # result.json of one configuration
        content |= {key: value for key, value in result.items() if isinstance(value, list)}
    history = content.pop("history", None)
    lists = {key: value for key, value in content.items() if isinstance(value, list)}
    tables = [table for key, value in lists.items() if (table := table_of(str(key), value))]
    figures = history_figure("Learning", "After each epoch.", {source.name: history}) if history else []
    facts = flattened({key: value for key, value in content.items() if key not in lists})
    if not (facts or tables or figures):
        raise SourceError(f"{source.path} holds nothing that a report can show")
    return View(source.name, "results", facts, figures, tables)
