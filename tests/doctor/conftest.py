"""Without Triton's interpreter, which takes most of the time; one test has it."""

from __future__ import annotations

import pytest


@pytest.fixture
def without_interpreter(monkeypatch):
    monkeypatch.setattr("stochprune.doctor.self_test._on_cpu", lambda name: [])
