"""A process that runs cases of a step. :mod:`bench.gpu.driver` starts it, and replaces it when it fails.

    python -m bench.gpu.worker MODULE < job.json

The module of a step has these functions:

- ``cases()`` returns the names of its cases;
- ``run(case)`` runs one, and returns its measurements or yields them in parts;
- ``healthy()`` returns True if the process can run another case;
- ``lost()``, which is optional, returns the GPU error that a case has left behind.

Or the module has its own loop, ``work(job)``. The worker tells the driver its progress through a pipe, one JSON object
per line: ``plan``, ``begin``, ``end`` and ``unusable``.
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
    """Do the job that is read from standard input."""
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
