"""Compile every specialisation that the GPU tests launch, as recorded by tests/recorder.py, and check the gates.

    python -O -m pytest --assert=plain -p tests.recorder --record launches.pickle tests/gpu
    python -m bench.recorded launches.pickle    # exit status 1 on a broken gate

The gates are: the grid, the threads and the shared memory fit the GPU; no instruction overwrites the left operand of a
matrix instruction too early; a thread spills at most 64 bytes. Results are stored by the source of the kernel, so that
a run continues where the last one ended.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from . import sass
from .launches import SHARED, SPILLED, Launch, Specialisation, content

ARCH = 90
THREADS = 1024
KNOWN = Path(".benchmarks/specialisations.jsonl")


class Result(NamedTuple):
    """The result of compiling one specialisation."""

    registers: int
    stack: int
    shared: int
    races: int
    threads: int

    def faults(self) -> list[str]:
        """Return the gates that this result breaks."""
        values = (self.races, "races", 0), (self.stack, "bytes spilled", SPILLED)
        sizes = (self.shared, "bytes of shared memory", SHARED[ARCH]), (self.threads, "threads", THREADS)
        return [f"{value} {what}" for value, what, most in (*values, *sizes) if value > most]


def compile_one(specialisation: Specialisation) -> Result:
    """Compile one specialisation and search its machine code for races."""
    code, shared = specialisation.compile(ARCH)
    races = len(sass.hazards(sass.parse(code.sass)))
    return Result(code.registers, code.stack, shared, races, 32 * specialisation.options["num_warps"])


def results(specialisations: list[Specialisation], known: Path, processes: int) -> dict[str, Result]:
    """Return the result of each specialisation by its key; compile unknown ones and append them to the file."""
    lines = known.read_text().splitlines() if known.exists() else []
    found = {name: Result(*values) for name, values in map(json.loads, lines)}
    names = {s.key: content(s) for s in specialisations}
    missing = [s for s in specialisations if names[s.key] not in found]
    known.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes) as pool, known.open("a") as file:
        for specialisation, result in zip(missing, pool.map(compile_one, missing), strict=True):
            found[names[specialisation.key]] = result
            print(json.dumps([names[specialisation.key], result]), file=file, flush=True)
    return {s.key: found[names[s.key]] for s in specialisations}


def describe(specialisation: Specialisation) -> str:
    """Return the kernel and its specialisation in one line."""
    parameters = [parameter.name for parameter in specialisation.function.params]
    types = {name: kind for name, kind in specialisation.signature.items() if kind.startswith("*")}
    aligned = [parameters[at[0]] for at, value in specialisation.attributes.items() if value]
    return f"{'.'.join(specialisation.kernel)} {types} {specialisation.named} aligned: {' '.join(aligned)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("launches", type=Path, help="the file that tests/recorder.py wrote")
    parser.add_argument("--known", type=Path, default=KNOWN, help="results of earlier runs")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    launches: list[Launch] = pickle.loads(options.launches.read_bytes())
    broken = [f"{describe(launch.specialisation)}: {fault}" for launch in launches for fault in launch.faults()]
    specialisations = {launch.specialisation.key: launch.specialisation for launch in launches}
    compiled = results(list(specialisations.values()), options.known, options.processes)
    for key, result in compiled.items():
        broken += [f"{describe(specialisations[key])}: {fault}" for fault in result.faults()]
    spilled = sum(result.stack > 0 for result in compiled.values())
    print("\n".join([*broken, f"{len(compiled)} specialisations, {spilled} of them spill, {len(broken)} faults"]))
    return int(bool(broken) or not compiled)


if __name__ == "__main__":
    sys.exit(main())
