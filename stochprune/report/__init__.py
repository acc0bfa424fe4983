"""All tables and pictures, from the content of a run's ``results.json``. A function that draws is called ``plot_*``."""

import warnings
from typing import Any

from stochprune.report.bounds import bounds_table, plot_bounds
from stochprune.report.certificates import certificate_table, plot_certificates
from stochprune.report.doctor import doctor_tables
from stochprune.report.finetune import finetune_table, plot_finetune
from stochprune.report.fraction import plot_fractions
from stochprune.report.initialisation import plot_initialisation
from stochprune.report.linear_lab import linear_lab_table, plot_linear_lab
from stochprune.report.memory import memory_table, scaling_table
from stochprune.report.study import study_markdown, write_csv
from stochprune.report.suite import comparison_table, suite_tables
from stochprune.report.summary import Row, Spread, summarize
from stochprune.report.timing import timing_table
from stochprune.report.workers import WorkerTable

__all__ = [
    "Row",
    "Spread",
    "WorkerTable",
    "bounds_table",
    "certificate_table",
    "comparison_table",
    "doctor_tables",
    "finetune_table",
    "linear_lab_table",
    "memory_table",
    "plot_bounds",
    "plot_certificates",
    "plot_finetune",
    "plot_fractions",
    "plot_initialisation",
    "plot_linear_lab",
    "scaling_table",
    "study_markdown",
    "suite_tables",
    "summarize",
    "timing_table",
    "write_csv",
]

_RENAMED = {"draw": plot_finetune, "draw_certificates": plot_certificates, "table": finetune_table}


def __getattr__(name: str) -> Any:
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    now = _RENAMED[name]
    warnings.warn(f"stochprune.report.{name} is called {now.__name__} now", DeprecationWarning, stacklevel=2)
    return now
