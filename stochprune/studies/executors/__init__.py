"""Executors: run the cells of a study on workers, over an engine that exists.

``ray``    tasks of Ray, on this machine or on a cluster that runs
``slurm``  jobs of Slurm through submitit; its option ``cluster=local`` starts processes on this machine instead

Workers and this process share the folder of the runs. A worker stores the result of its cell there, as a study in one
process does; when all cells are stored, the study goes over them and writes its tables. So the results are the same. A
cell whose worker died runs again, from its last checkpoints.
"""

from stochprune.studies.executors.engine import WorkerError
from stochprune.studies.executors.options import NAMES, Executor, choose
from stochprune.studies.executors.pool import run_cells

__all__ = ["NAMES", "Executor", "WorkerError", "choose", "run_cells"]
