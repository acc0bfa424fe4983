"""Experiments: grids of configurations, each run once, with tables and pictures."""

from stochprune.studies.finetune import StudyConfig, run_study
from stochprune.studies.initialisation import Cell, InitialisationConfig
from stochprune.studies.plan import SHIPPED, Plan, load
from stochprune.studies.run import run

__all__ = ["SHIPPED", "Cell", "InitialisationConfig", "Plan", "StudyConfig", "load", "run", "run_study"]
