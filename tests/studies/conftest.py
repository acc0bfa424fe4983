"""The plan of a module's TEXT, and its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stochprune import studies


@pytest.fixture(scope="module")
def plan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> studies.Plan:
    path = tmp_path_factory.mktemp("plan") / "mine.yaml"
    path.write_text(request.module.TEXT)
    return studies.load(path)


@pytest.fixture(scope="module")
def finished(plan: studies.Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    return studies.run(plan, out=tmp_path_factory.mktemp("runs"))
