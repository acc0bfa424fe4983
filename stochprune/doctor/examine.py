"""The examination: all facts and self-tests in one value that JSON can store, and its text for a bug report."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch

import stochprune
from stochprune import backends
from stochprune.doctor import machine
from stochprune.doctor.packages import Package, packages
from stochprune.doctor.self_test import SelfTest, self_tests

Examination = dict[str, Any]


def examine() -> Examination:
    """Return what works on this machine, for :func:`bug_report` and JSON.

    Its keys: ``passed`` (False if a self-test fails), ``problems`` (texts), ``versions``, ``machine``, ``compilers``,
    ``gpu``, ``variables``, ``backends``, ``self_tests``, ``packages``.
    """
    states, tests, listed, threads = backends.states(), self_tests(), packages(), machine.threads()
    versions = {
        "stochprune": stochprune.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    return {
        "passed": all(test.passed for test in tests),
        "problems": _problems(states, tests, listed, threads),
        "versions": versions,
        "machine": {**machine.processor(), **threads},
        "compilers": machine.compilers(),
        "gpu": machine.gpus(),
        "variables": machine.variables(),
        "backends": [state._asdict() for state in states],
        "self_tests": [{**test._asdict(), "passed": test.passed} for test in tests],
        "packages": [{**package._asdict(), "fits": package.fits} for package in listed],
    }


def _problems(
    states: list[backends.State], tests: list[SelfTest], listed: list[Package], threads: Mapping[str, int]
) -> list[str]:
    """Return what is wrong, the worst first, each with what to do."""
    found = [f"the self-test of {t.backend} on {t.device} fails: {'; '.join(t.failures)}" for t in tests if t.failures]
    native = next(state for state in states if state.name == "native")
    if not native.usable:
        missing = native.reason.startswith("not available")
        advice = ": install cmake and a C++20 compiler, then install stochprune again" if missing else ""
        found.append(f"the C++ backend does not serve the CPU ({native.reason}){advice}")
    try:
        backends.resolve(torch.ones(1))
    except (ValueError, RuntimeError) as error:  # the variable that chooses a backend
        found.append(f"no layer runs on the CPU: {error}; unset {backends.OVERRIDE}")
    for name in machine.unknown_variables():
        found.append(f"nothing reads the environment variable {name}; known are {', '.join(machine.OWN)}")
    for package in listed:
        if package.fits:
            continue
        extras = f"[{','.join(package.extras)}]" if package.extras else ""
        found.append(f"{package}: pip install --upgrade 'stochprune{extras}'")
    if threads["torch threads"] > threads["cores"]:
        found.append(
            f"torch uses {threads['torch threads']} threads on {threads['cores']} cores, which wait for each other: "
            f"set OMP_NUM_THREADS={threads['cores']}"
        )
    return found


def bug_report(examination: Examination) -> str:
    """Return the examination as one block of text for a bug report."""
    sections = {
        "problems": examination["problems"] or ["none"],
        "versions": _pairs(examination["versions"]),
        "backends": [f"{s['device']:<6}{s['name']:<11}{s['reason']}" for s in examination["backends"]],
        "self-tests": [_outcome(test) for test in examination["self_tests"]],
        "machine": _pairs(examination["machine"]),
        "compilers": _pairs(examination["compilers"]),
        "gpu": _pairs(examination["gpu"]),
        "variables": _pairs(examination["variables"]) or ["none is set"],
        "packages": [
            ", ".join(str(Package(*(p[field] for field in Package._fields))) for p in examination["packages"])
        ],
    }
    lines = [line for name, content in sections.items() for line in (f"{name}:", *(f"  {text}" for text in content))]
    return "\n".join(["```text", "stochprune doctor", *lines, "```"])


def _pairs(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}: {value}" for name, value in values.items()]


def _outcome(test: Mapping[str, Any]) -> str:
    result = "; ".join(test["failures"]) or "passed"
    return f"{test['device']:<6}{test['backend']:<16}{result} ({test['seconds']:.1f} s)"
