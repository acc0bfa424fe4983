"""Run the studies of this folder side by side for some minutes; the same command continues them.

    make gpu-science                                          # or python -m bench.gpu.science
    python -m bench.gpu.science --small --device cpu          # a rehearsal, on any machine

One study leaves a GPU idle most of the time, so all run at once, each in a process. After the minutes they get SIGTERM,
and a later run continues from their checkpoints. Results, and the output of each study, are in the folder ``--out``,
which is copied to the folder in the variable OUT, if it is set. Needs the packages of the extra ``studies``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.gpu.journal import say

STUDIES = sorted(Path(__file__).parent.glob("*.yaml"))
ROOT = Path(__file__).parents[3]
GRACE = 30
"""Seconds that a study has for its last checkpoint."""


def start(study: Path, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Start or continue a study; its output is added to a file with its name."""
    command = [sys.executable, "-m", "stochprune", "study", str(study), "--out", str(options.out)]
    command += ["--device", options.device] + ["--small"] * options.small
    if options.data_dir is not None:
        command += ["--data-dir", str(options.data_dir.absolute())]
    with open(options.out / f"{study.stem}.log", "ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def wait(running: dict[str, subprocess.Popen[bytes]], out: Path, seconds: float) -> None:
    """Wait until all have ended, and print every minute how many cells have a result."""
    deadline, said = time.monotonic() + seconds, time.monotonic()
    while time.monotonic() < deadline and any(process.poll() is None for process in running.values()):
        time.sleep(0.2)
        if time.monotonic() - said >= 60:
            said = time.monotonic()
            names = ", ".join(name for name, process in running.items() if process.poll() is None)
            say(f"{finished(out)} cells finished; {(deadline - said) / 60:.0f} minutes left; running: {names}")


def finished(out: Path) -> int:
    """Return the number of cells with a result."""
    return sum(1 for _ in out.glob("cells/*/result.json"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if every study has ended well or was stopped by the time, 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder with the folder cifar10, see stochprune study --help")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "science")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--small", action="store_true", help="the small version of each study")
    options = parser.parse_args(arguments)
    options.out = options.out.absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    running = {study.stem: start(study, options) for study in STUDIES}
    try:
        wait(running, options.out, 60 * options.minutes)
    finally:
        late = [name for name, process in running.items() if process.poll() is None]
        for name in late:
            running[name].terminate()
        for process in running.values():
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if out := os.environ.get("OUT"):
            shutil.copytree(options.out, Path(out) / options.out.name, dirs_exist_ok=True)
    failed = [name for name, process in running.items() if name not in late and process.returncode]
    say(f"{finished(options.out)} cells have a result in {options.out}")
    for name in late:
        say(f"{name}: stopped by the time; the same command continues it")
    for name in failed:
        log = (options.out / f"{name}.log").read_text(errors="replace").splitlines()
        say("\n".join([f"{name}: failed", *log[-5:]]), sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
