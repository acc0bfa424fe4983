"""What a release says about itself agrees: the version, the change log, the citation, the issue templates."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_version_is_the_same_everywhere():
    yaml = pytest.importorskip("yaml")
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version and citation["license"] == "Apache-2.0"
    assert re.search(r"^## (\S+) \(", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda p: p.stem)
def test_an_issue_template_has_what_github_needs(path):
    yaml = pytest.importorskip("yaml")
    form = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"]
    assert all(part["type"] in ("textarea", "checkboxes") and part["attributes"]["label"] for part in form["body"])
    assert len({part["id"] for part in form["body"]}) == len(form["body"])
