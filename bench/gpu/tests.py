"""Run the tests that need a GPU and those of the kernels, and write one row per test as soon as it is over.

pytest runs inside the worker, so the driver's time limits and restarts apply here too. Each lane runs its share of the
tests. So neither pytest-timeout nor pytest-xdist is needed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from bench.gpu import device
from bench.gpu.job import LENGTH, REPLACE, Job, leave

TESTS = ("tests/gpu", "tests/backends", "tests/kernels")
OPTIONS = ("-q", "-m", "not slow", "-p", "no:cacheprovider", "--continue-on-collection-errors")
# This test compiles without a GPU; machines without a GPU run it.
LEFT_OUT = ("--deselect", "tests/kernels/test_compile.py")


class Recorder:
    """A plugin of pytest that selects this lane's tests and writes a row for each one."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._reports: list[pytest.TestReport] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep the lane's share of the tests, without those that an earlier worker has done."""
        mine = set(self.job.mine([item.nodeid for item in items]))
        items[:] = [item for item in items if item.nodeid in mine]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Record a file that cannot be imported as a failure, in the first lane only."""
        if report.failed and self.job.lane == 0 and report.nodeid not in self.job.done:
            self.job.begin(report.nodeid)
            self.job.end(self.job.record(report.nodeid, False, error=report.longreprtext[-LENGTH:]))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Start the clock of the test."""
        self._reports = []
        self.job.begin(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the reports of setup, call and teardown."""
        self._reports.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Write the row of the test."""
        late = device.lost()
        failed = [report for report in self._reports if report.failed]
        skipped = [report for report in self._reports if report.skipped]
        if failed:
            text = "\n".join(report.longreprtext for report in failed)
            row = self.job.record(nodeid, False, error=text[-LENGTH:])
        elif late:
            row = self.job.record(nodeid, False, error=f"the test ended well, but left an error: {late}")
        elif skipped:
            row = self.job.record(nodeid, None, skipped=skipped[0].longreprtext[-300:])
        else:
            row = self.job.record(nodeid, True)
        self.job.end(row)
        if late:
            leave(REPLACE)


def work(job: Job) -> None:
    """Run the lane's tests."""
    device.require()
    folder = ModuleType("tests")  # the tests import from it; a package of this name elsewhere would hide the folder
    folder.__path__ = [str(Path(__file__).parents[2] / "tests")]
    sys.modules["tests"] = folder
    status = pytest.main([*OPTIONS, *LEFT_OUT, *TESTS], plugins=[Recorder(job)])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        leave(1)
