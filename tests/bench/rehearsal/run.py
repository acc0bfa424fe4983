"""The whole check on a machine without a GPU: ``python tests/bench/rehearsal/run.py [options of gpu_check]``.

Its results go where the variable OUT says and nowhere else.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent

if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[2]))
    from bench import gpu_check
    from bench.gpu import journal
    from bench.gpu.steps import STEPS

    journal.RESULTS = Path(os.environ["OUT"]) / "results"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    sys.exit(gpu_check.main(steps=[step._replace(module=step.module.replace("bench.gpu", "mocked")) for step in STEPS]))
