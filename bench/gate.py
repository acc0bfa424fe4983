"""Fail if this clone is slower than its base: ``make bench-gate``, or ``python -m bench.gate [--base COMMIT]``.

The base is the merge base with main. Both commits are built in build/gate, without network. Then processes of both take
turns on one thread: base, head, head, base, ... Each measures the processor time of ours divided by that of the dense
layer, so that the speed of the machine cancels. A case fails if the 95 % interval of head / base lies beyond the
tolerance. The second judge is the number of instructions of a fixed workload, by perf or callgrind, which other load
does not change.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from stochprune.report.summary import Paired

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "gate"
PAIRS = 8
CALLS = 40
"""Steps of each case whose instructions perf counts; callgrind, fifty times as slow, counts a tenth."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The change in one case by the pairs of processes: head / base, and its 95 % interval."""

    change: float
    low: float
    high: float

    def fails(self, tolerance: float) -> bool:
        """Return True if the whole interval lies beyond ``1 + tolerance``."""
        return self.low > 1 + tolerance


def decide(base: Sequence[float], head: Sequence[float]) -> Verdict:
    """Return the verdict on the ratios of two pairs or more of processes.

    The interval is Student's, of the mean of ``log(head / base)``: pairs are independent, unlike rounds of a process.
    """
    found = Paired.of([math.log(b / a) for a, b in zip(base, head, strict=True)])
    if found.half_width is None:
        raise ValueError("an interval needs at least two pairs of processes")
    low, high = found.mean - found.half_width, found.mean + found.half_width
    return Verdict(math.exp(found.mean), math.exp(low), math.exp(high))


def installed(commit: str) -> Path:
    """Return a folder in which a commit's package is installed; it is built once for each content."""
    tree = _git("rev-parse", f"{commit}^{{tree}}")
    target = BUILD / tree[:16]
    if not target.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD) as work:
            source, site, packed = (Path(work) / name for name in ("source", "site", "source.tar"))
            source.mkdir()
            _git("archive", "--output", str(packed), commit)
            subprocess.run(["tar", "-xf", packed, "-C", source], check=True)
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
            subprocess.run([*pip, "--target", site, source], check=True)
            site.rename(target)
    return target


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def command(site: Path, *options: str) -> tuple[list[str], dict[str, str], Path]:
    """Return the command of a process that measures the package in ``site``, its variables and its folder."""
    tools = BUILD / "tools"  # a folder with bench/ and without stochprune/, which would come before the site
    tools.mkdir(parents=True, exist_ok=True)
    if not (tools / "bench").exists():
        (tools / "bench").symlink_to(ROOT / "bench")
    path = {"PYTHONPATH": f"{site}{os.pathsep}{tools}", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    return [sys.executable, "-m", "bench.gate_cases", *options], {**os.environ, **path}, tools


def measured(site: Path) -> tuple[str, dict[str, float]]:
    """Return the backend and the ratios that one process measures."""
    words, variables, folder = command(site)
    ended = subprocess.run(words, env=variables, cwd=folder, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"the cases do not run in {site}:\n{ended.stderr[-2000:]}")
    found = json.loads(ended.stdout.splitlines()[-1])
    if not Path(found["file"]).is_relative_to(site):
        raise RuntimeError(f"the process ran {found['file']} instead of the package in {site}")
    return found["backend"], found["ratios"]


def in_turns(base: Path, head: Path, pairs: int) -> dict[str, tuple[list[float], list[float]]]:
    """Return the ratios of base and head by case, one of each pair of processes: base, head, head, base, ...

    Raises:
        ValueError: the commits run on different backends.
    """
    sites, found = (base, head), list[list[tuple[str, dict[str, float]]]]()
    for pair in range(pairs):
        order = (0, 1) if pair % 2 == 0 else (1, 0)
        both = {side: measured(sites[side]) for side in order}
        found.append([both[0], both[1]])
        print(f"pair {pair + 1} of {pairs}", file=sys.stderr, flush=True)
    backends = {backend for pair in found for backend, _ in pair}
    if len(backends) > 1:
        raise ValueError(f"base and head run on different backends: {', '.join(sorted(backends))}; was one not built?")
    names = found[0][0][1]
    return {name: ([one[1][name] for one, _ in found], [other[1][name] for _, other in found]) for name in names}


def instructions(site: Path) -> tuple[str, int] | None:
    """Return the name of the counter and the instructions of the workload; None if no counter works here."""
    for counter in (_perf, _callgrind):
        if (count := counter(site)) is not None:
            return counter.__name__.removeprefix("_"), count
    return None


def _perf(site: Path) -> int | None:
    """Count by perf: a process that runs the workload, minus one that does not."""
    if shutil.which("perf") is None:
        return None
    counts = []
    for calls in (CALLS, 0):
        words, variables, folder = command(site, "--calls", str(calls))
        perf = ["perf", "stat", "-x", ",", "-e", "instructions:u"]
        ended = subprocess.run([*perf, *words], env=variables, cwd=folder, capture_output=True, text=True)
        first = next((line.split(",")[0] for line in ended.stderr.splitlines() if "instructions" in line), "")
        if ended.returncode or not first.isdigit():  # such as "<not supported>" on many virtual machines
            return None
        counts.append(int(first))
    return counts[0] - counts[1]


CALLGRIND = """
from torch.utils.benchmark import Timer
setup = "from bench.gate_cases import all_ours; run = all_ours(); run()"
print(Timer("run()", setup=setup).collect_callgrind(number={calls}, collect_baseline=False).counts(denoise=True))
"""


def _callgrind(site: Path) -> int | None:
    """Count by callgrind, which emulates a processor with AVX2 at most."""
    if shutil.which("valgrind") is None:
        return None
    _, variables, folder = command(site)
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # torch runs `python`
    script = CALLGRIND.format(calls=CALLS // 10)
    words = [sys.executable, "-c", script]
    ended = subprocess.run(words, env=variables, cwd=folder, capture_output=True, text=True)
    return None if ended.returncode else int(ended.stdout.split()[-1])


def report(base: Path, head: Path, pairs: int, tolerance: float) -> int:
    """Print what base and head say; return the exit status, 1 if a case or the instruction count fails."""
    failed = 0
    print("processor time of ours / dense: head / base, 95 % interval")
    for name, (before, after) in in_turns(base, head, pairs).items():
        found = decide(before, after)
        failed += (fails := found.fails(tolerance))
        print(f"{found.change:.3f}  {found.low:.3f} to {found.high:.3f}  {'FAILS  ' if fails else ''}{name}")
    counts = [instructions(base), instructions(head)]
    if counts[0] is None or counts[1] is None:
        print("instructions: not counted, because neither perf nor callgrind works here")
    else:
        change = counts[1][1] / counts[0][1]
        failed += (fails := change > 1 + tolerance)
        print(f"{change:.4f}  instructions, by {counts[0][0]}{': FAILS' if fails else ''}")
    return int(failed > 0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", help="a commit; the default is the merge base with main")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="pairs of processes, at least 2")
    parser.add_argument("--tolerance", type=float, default=0.1, help="0.1 allows 10 per cent")
    options = parser.parse_args(arguments)
    if not 0 <= options.tolerance < math.inf:
        parser.error(f"--tolerance must be a finite number of at least 0, got {options.tolerance}")
    if options.pairs < 2:
        parser.error(f"--pairs must be at least 2, got {options.pairs}")
    try:
        wanted = options.base or _git("merge-base", "HEAD", "main")
        base = _git("rev-parse", "--verify", f"{wanted}^{{commit}}")
    except subprocess.CalledProcessError as error:
        parser.error(
            f"no base: {error.cmd[-1]}: {error.stderr.strip()}; name a commit with --base, or BASE=... of make"
        )
    head = _git("stash", "create") or _git("rev-parse", "HEAD")  # a commit of the changed files; it changes nothing
    if _git("ls-files", "--others", "--exclude-standard"):
        print("files that git does not know are not measured", file=sys.stderr)
    print(f"base {base[:10]}, head {head[:10]}, {options.pairs} pairs of processes, one thread", flush=True)
    try:
        return report(installed(base), installed(head), options.pairs, options.tolerance)
    except (RuntimeError, ValueError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
