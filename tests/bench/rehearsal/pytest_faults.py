"""The step that runs pytest, on the files that ``FAULTS`` names, without torch."""

from __future__ import annotations

import importlib
import os
import sys
from types import SimpleNamespace

from bench import gpu

lost: list[str] = []  # tests/bench/test_gpu_tests.py's own files append to it

gpu.device = SimpleNamespace(require=lambda: None, lost=lambda: lost[0] if lost else None)
sys.modules["bench.gpu.device"] = gpu.device

tests = importlib.import_module("bench.gpu.tests")
tests.TESTS = (os.environ["FAULTS"],)
work = tests.work
