"""One process that runs cases of a step: started by :mod:`bench.gpu.driver`, replaced by it when it fails.

    python -m bench.gpu.worker MODULE < job.json

The module names its cases by ``cases()`` and runs one by ``run(case)``, which returns, or yields in parts, what is to
stand in the case's row; ``healthy()`` says after each case whether the process can run another, and ``lost()``, where
the module has it, which error of the GPU it left. Or the module has its
own loop, ``work(job)``.
What the driver is to know goes through a pipe: ``plan``, ``begin``, ``end`` and ``unusable``, one JSON object a line.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

from bench.gpu.job import Job, Unusable, die_with_parent, each, leave
from bench.gpu.journal import Journal


def main() -> None:
    """Do the job that the standard input holds."""
    die_with_parent()
    work = json.load(sys.stdin)
    os.set_inheritable(work["pipe"], False)
    journal = Journal(work.pop("run"), map(Path, work.pop("folders")))
    job = Job(journal=journal, **work)
    try:
        module = importlib.import_module(sys.argv[1])
        if hasattr(module, "work"):
            module.work(job)
        else:
            each(job, module)
    except Unusable as why:
        job.unusable(str(why))
    except BaseException:
        traceback.print_exc()
        leave(1)
    leave(0)


if __name__ == "__main__":
    main()
