"""The hooks of the documentation site: its reference has every public name, its numbers are those of the ledger."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("mkdocs")

ROOT = Path(__file__).parents[1]


def hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"hook_{name}", ROOT / "docs" / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name", ["nn", "functional", "training", "pac_bayes", "masks", "scores", "bounds", "data", "distributed"]
)
def test_the_reference_has_every_public_name(name):
    module = importlib.import_module(f"stochprune.{name}")
    found = hook("reference").public_names(f"stochprune.{name}")
    assert set(found) == set(module.__all__)
    for public, home in found.items():
        path, _, attribute = home.rpartition(".")
        assert getattr(importlib.import_module(path), attribute) is getattr(module, public)


def test_the_tables_are_those_of_the_ledger():
    ledger = hook("ledger")
    page = ledger.on_page_markdown((ROOT / "docs" / "performance.md").read_text(), page=None)
    assert "<!-- ledger" not in page
    newest = max((ROOT / "bench" / "results").glob("models-*.json"), key=lambda path: path.name)
    row = json.loads(newest.read_text())["rows"][0]
    assert f"| {row['network']} | {row['batch']} | {row['tax']['joint']:.2f} |" in page


@pytest.mark.parametrize(
    ("uri", "text", "found"),
    [
        ("bounds.md", "[a](estimators.md#x)", "[a](estimators.md#x)"),
        ("results/immune.md", "[a](../bounds.md)", "[a](../bounds.md)"),
        ("bounds.md", "[a](../README.md#x)", "[a](source/README.md#x)"),
        ("results/immune.md", "[a](../../stochprune/rng.py)", "[a](../source/stochprune/rng.py.md)"),
        ("source/README.md", "[a](docs/bounds.md)", "[a](../bounds.md)"),
        ("theory-linear.md", "[tests](../tests/theory)", "tests"),
        ("bounds.md", "[a](https://example.org/x)", "[a](https://example.org/x)"),
    ],
)
def test_links_outside_docs_lead_into_the_site(uri, text, found):
    class page:
        class file:
            src_uri = uri

    assert hook("links").on_page_markdown(text, page=page, config=None, files=None) == found
