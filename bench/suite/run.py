"""Run cases through pytest-benchmark, and keep what is finished."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import io
import os
import random
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from stochprune.extras import extra
from stochprune.runs.config import POSITIVE, Config, Range, option
from stochprune.runs.device import device_of
from stochprune.runs.digests import json_digest
from stochprune.runs.files import read_json
from stochprune.runs.interrupt import Stopped
from stochprune.runs.progress import ProgressBar
from stochprune.runs.results import record_of
from stochprune.runs.run import Run, open_run, run_folder

from . import KIND, roof
from .about import about
from .case import DTYPES, Case, Op
from .cases import chosen
from .measure import Settings, measure
from .ops import OPS
from .outside import with_contenders
from .roof import Roof
from .row import Row, fast_p
from .scaling import slopes

with extra("bench", "stochprune.bench.run"):
    import pytest
    from pytest_benchmark.fixture import BenchmarkFixture

OPTIONS = (
    *("-q", "--disable-plugin-autoload", "-p", "pytest_benchmark.plugin", "-p", "no:cacheprovider", "-c", os.devnull),
    *("--import-mode=importlib", "--benchmark-disable-gc", "--benchmark-quiet", "--benchmark-timer=time.perf_counter"),
)
"""Options of pytest, so that neither other plugins nor a configuration in the current folder change the times."""
VARIABLES = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_XDIST_WORKER")
"""Variables of the environment that would change them too."""


THREADS = Range("lie in 0 .. 1024", lambda value: 0 <= value <= 1024)  # torch dies of millions


@dataclasses.dataclass(frozen=True)
class SuiteConfig(Config):
    """The configuration of a run. ``groups`` are keys of :data:`.cases.GROUPS`."""

    groups: tuple[str, ...]
    only: str = option("", "Run only the cases whose names contain this text.")
    small: bool = option(False, "Run every case at sizes of at most 48: a quick look, whose times mean nothing.")
    seconds: float = option(5.0, "Seconds of a case; it takes more if seven rounds need it.", POSITIVE)
    threads: int = option(0, "Threads of the processor; 0 means as many as torch has.", THREADS)
    contenders: str = option("", "Contenders of your own: module:attribute, see docs/benchmark.md.")


def run(
    config: SuiteConfig, *, out: Path = Path("runs"), device: str | torch.device = ""
) -> tuple[Path, dict[str, Any]]:
    """Run the cases that are not finished, and write ``results.json`` after each.

    The folder is named after the configuration and all that times depend on, so the same call continues a run that was
    stopped. All contenders of a case run in one process.

    Returns:
        The folder, and the content of its ``results.json``: ``kind``, ``configuration``, ``versions``, ``commit``,
        ``machine``, ``device``, ``backend``, ``torch``, ``threads``, ``contenders`` (a digest of the file that defines
        them, if there is one), ``date`` and ``load`` (of the machine) at the beginning, ``roof``, ``rows``
        (see :class:`.row.Row`), ``fast_p``, ``slopes`` (see :class:`.scaling.Slope`) and ``left``, the number of cases
        that are not finished.

    Raises:
        ValueError: an unknown group, no case, an unknown device; ``contenders`` that cannot be used.
        CheckpointError: a damaged file of an earlier run, or another process is running this one.
    """
    here = device_of(device)
    cases = chosen(config.groups, config.only, config.small)
    with _threads(config.threads):
        ops, digest = with_contenders(OPS, config.contenders)
        facts: dict[str, Any] = {**about(here), "threads": torch.get_num_threads(), **digest}
        folder = run_folder(out, "bench", config, suffix=f"-{json_digest(facts)[:8]}")
        with open_run(config, folder) as held:
            suite = Suite(cases, ops, Settings(here, config.seconds), facts, held)
            if suite.todo:
                suite.run()
            return folder, suite.write()


class Suite:
    """The plugin that gives pytest its cases, and keeps their rows."""

    def __init__(
        self, cases: list[Case], ops: Mapping[str, Op], settings: Settings, facts: dict[str, Any], held: Run
    ) -> None:
        self.cases, self.ops, self.settings, self.held = cases, ops, settings, held
        assert held.folder is not None
        path = held.folder / "results.json"
        found = read_json(path, "result") if path.is_file() else {"rows": []}
        self.rows = [record_of(Row, row, path) for row in found["rows"]]
        self.todo = [case for case in cases if case.name not in {row.case for row in self.rows}]
        if "roof" in found:  # the shares of all rows are of one roof
            self.roof = record_of(Roof, found["roof"], path)
            self.facts = facts | {name: found[name] for name in ("date", "load")}
        else:
            self.roof = roof.measure(settings.device, {case.dtype: DTYPES[case.dtype] for case in cases})
            self.facts = facts | {"date": datetime.date.today().isoformat(), "load": list(os.getloadavg())}
        self.bar = ProgressBar("benchmarks", len(self.todo))
        self.raised: BaseException | None = None

    def run(self) -> None:
        """Run the cases that are not finished.

        Raises:
            Stopped: a signal; finished cases are on disk.
        """
        said = io.StringIO()
        with tempfile.TemporaryDirectory() as storage, self.bar, contextlib.redirect_stdout(said), _alone():
            options = [*OPTIONS, f"--benchmark-storage=file://{storage}"]  # it would make a folder here
            status = pytest.main([*options, str(Path(__file__).with_name("timed.py"))], plugins=[self])
        if self.raised is not None:
            raise self.raised
        if status != pytest.ExitCode.OK:
            raise RuntimeError(f"pytest ended with {status!r}:\n{said.getvalue()}")

    def measure(self, case: Case, benchmark: BenchmarkFixture) -> None:
        """Measure a case and keep its rows."""
        self.bar.begin(case.name)
        try:
            self.rows += measure(case, self.ops[case.op], self.settings, self.roof, benchmark)
            self.write()
        except (Stopped, OSError) as error:  # pytest would take them for a failed test
            self.raised = error
            pytest.exit(str(error))
        gc.collect()  # of cycles that hold tensors
        self.bar.finish(1)

    def write(self) -> dict[str, Any]:
        """Write the rows of all finished cases, in the order of the cases."""
        order = {case.name: i for i, case in enumerate(self.cases)}
        rows = sorted(self.rows, key=lambda row: order[row.case])
        found = {"rows": [dataclasses.asdict(row) for row in rows], "fast_p": fast_p(rows)}
        found["slopes"] = [dataclasses.asdict(slope) for slope in slopes(rows)]
        left = len(self.cases) - len({row.case for row in rows})
        limits = dataclasses.asdict(self.roof)
        return self.held.write(
            {"kind": KIND, **self.facts, "roof": limits, **found, "left": left}, self.settings.device
        )

    @pytest.fixture
    def suite(self) -> Suite:
        """Return this plugin to the test."""
        return self

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Make a test of each case."""
        metafunc.parametrize("case", self.todo, ids=[case.name for case in self.todo])


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Hide the variables of pytest inside the block, and keep the state of Python's random numbers."""
    former = random.getstate()
    variables = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
    try:
        yield
    finally:
        random.setstate(former)
        os.environ.update(variables)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use this many threads inside the block; 0 changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
