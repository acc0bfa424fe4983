"""Check a machine with a GPU: installation, kernels, times, counters and tests. Then write a row of the ledger.

    make gpu-check                                   # or python -m bench.gpu_check; ten minutes at most
    python -m bench.gpu_check --only smoke,times     # some steps
    python -m bench.gpu_check --summary FOLDER       # write the ledger's row again, from the files of an earlier run

The row of each case is written at once, to bench/results and to the folder in the variable OUT if it is set. A hang, a
crash or a lost GPU does not remove rows, and every step has a time limit. See docs/gpu.md.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.gpu import summary
from bench.gpu.driver import run
from bench.gpu.journal import Journal, Row, folders, say
from bench.gpu.steps import STEPS, Step

ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # they stop the check, which then writes the ledger's row


def chosen(names: str, minutes: float | None, steps: Sequence[Step] = STEPS) -> list[Step]:
    """Return the named steps in their order, or all steps, with their times scaled to ``minutes``.

    Raises:
        ValueError: a name is unknown, or ``minutes`` is not positive.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = [step.name for step in steps]
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"--only: unknown step '{unknown[0]}'; the steps are: {', '.join(known)}")
    found = [step for step in steps if not wanted or step.name in wanted]
    if minutes is None:
        return found
    if not minutes > 0:
        raise ValueError(f"--minutes must be positive, got {minutes:g}")
    scale = 60 * minutes / sum(step.seconds for step in found)
    return [
        step._replace(seconds=scale * step.seconds, case_seconds=max(1.0, scale) * step.case_seconds) for step in found
    ]


def identified(wanted: list[Step], steps: Sequence[Step]) -> list[Step]:
    """Return the steps, after a step that records the versions if no other step does."""
    first = steps[0]
    if first.name != "install" or any(step.name == "install" for step in wanted):
        return wanted
    return [Step("versions", first.module.replace("install", "versions"), 30, 30), *wanted]


def finish(rows: Sequence[Row], journal: Journal, run: str = "") -> None:
    """Write the ledger's row, then print the table."""
    row = summary.ledger(rows)
    paths = journal.save(summary.file_name(row, run), summary.dumps(row))
    say(summary.text(row))
    say("wrote " + (", ".join(map(str, paths)) or "nothing: no folder could be written"))


def main(arguments: Sequence[str] | None = None, steps: Sequence[Step] = STEPS) -> int:
    """Return 0 if every step succeeded, 1 if not, 2 if the machine has no GPU or the arguments are wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="STEPS", help=", ".join(step.name for step in steps))
    parser.add_argument("--minutes", type=float, help="time limit of all chosen steps, instead of their own")
    parser.add_argument("--summary", type=Path, metavar="FOLDER", help="run nothing; read this folder or file")
    options = parser.parse_args(arguments)
    try:
        wanted = chosen(options.only, options.minutes, steps)
        if options.summary is not None:
            path = options.summary
            finish(summary.gather(path), Journal("summary", [path if path.is_dir() else path.parent]))
            for name, values in summary.mixed(path).items():
                print(f"warning: the runs differ in {name}: {', '.join(values)}; give one file", file=sys.stderr)
            return 0
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    journal = Journal(time.strftime("%Y%m%d-%H%M%S"), folders())
    stop: list[int] = []
    before = {n: signal.signal(n, lambda n, _: stop.append(n)) for n in ENDS}
    try:
        status = run(identified(wanted, steps), journal, lambda: bool(stop))
        if status != 2:
            finish(journal.rows(), journal, journal.run)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status


if __name__ == "__main__":
    sys.exit(main())
