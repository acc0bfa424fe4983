"""The steps of the check in their order, and their time limits."""

from __future__ import annotations

import os
from typing import NamedTuple


class Step(NamedTuple):
    """One step: a module with ``cases()`` and ``run(case)``, or with ``work(job)``; see :mod:`bench.gpu.worker`."""

    name: str
    module: str
    seconds: float  # time limit of the step; then its workers are killed
    case_seconds: float  # time limit of a case; then its worker is killed, and another one continues with the next case
    lanes: int = 1  # number of workers at once; more than one only if nothing is timed
    quiet: bool = False  # print failures only


STEPS = (  # less than ten minutes together
    Step("install", "bench.gpu.install", 95, 90),
    Step("smoke", "bench.gpu.smoke", 60, 40, lanes=8),
    Step("times", "bench.gpu.times", 120, 60),
    Step("counters", "bench.gpu.counters", 40, 30),
    Step("tests", "bench.gpu.tests", 160, 60, lanes=min(12, os.cpu_count() or 1), quiet=True),
    Step("calibrate", "bench.gpu.calibration", 40, 40),
    Step("sanitize", "bench.gpu.sanitizer", 40, 40, lanes=4),
    Step("draws", "bench.gpu.certificates", 30, 30),
)
