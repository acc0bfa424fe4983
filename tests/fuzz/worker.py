"""Runs random calls in a process of its own, so that a crash is seen: ``python -m tests.fuzz.worker SEED COUNT``.

Prints one JSON line for each call that went wrong, and at last the number of calls. Before a call it prints what it
is about to do on standard error, so that the last line there names the call that ended the process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import linecache
import math
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stochprune.extras import MissingExtraError
from stochprune.training import CheckpointError
from tests.fuzz import commands
from tests.fuzz.bases import bases
from tests.fuzz.values import is_nonsense, mutated

SECONDS = 10
ALLOWED = (ValueError, TypeError, OSError, CheckpointError, FloatingPointError, MissingExtraError)
UNCLEAR = (
    "incompatible function arguments",
    "not supported between",
    "is invalid for input of size",
    "maximum supported dimension",
    "has no attribute",
    "unknown device type",
    "codec can't decode",
)


class Hang(BaseException):
    """A call took longer than ``SECONDS``."""


def main(seed: int, count: int) -> None:
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    signal.signal(signal.SIGPROF, _hang)
    warm_up()
    table = bases()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        files()
        for number in range(count):
            numbers = random.Random(f"{seed} {number}")
            if number % 8 == 7:
                call, text = commands.drawn(numbers)
                judge = commands.fault
            else:
                name = numbers.choice(sorted(table))
                call, text, judge = drawn(numbers, name, *table[name])
            print(f"[{number}] {text}", file=sys.stderr, flush=True)
            fault = bounded(call, judge)
            if fault:
                print(json.dumps({"number": number, "call": text, "fault": fault}), flush=True)
    print(json.dumps({"calls": count}))


def warm_up() -> None:
    """Import what is imported at the first use, so that no call is charged for it."""
    import sklearn.datasets
    import torch._dynamo

    torch.optim.Adam([torch.ones(1, requires_grad=True)])
    assert sklearn.datasets


def files() -> None:
    """Write the files that calls and commands find in their working folder."""
    Path("empty").mkdir()
    Path("values.idx").write_bytes(bytes([0, 0, 8, 1]) + struct.pack(">I", 3) + b"abc")
    Path("values.json").write_text('{"m": 3}')
    Path("binary").write_bytes(bytes(range(256)) * 4)


def drawn(
    numbers: random.Random, name: str, function: Callable[..., Any], make: Callable[[], dict[str, Any]]
) -> tuple[Callable[[], Any], str, Callable[[Any], str]]:
    """A call of ``function`` with one or two arguments changed, its text, and what judges its result."""
    arguments = make()
    names = sorted(set(arguments) - {"self"})
    chosen = numbers.sample(names, min(len(names), numbers.choice((1, 1, 2))))
    changed = {key: mutated(numbers, key, arguments[key]) for key in chosen}
    nonsense = [key for key, value in changed.items() if is_nonsense(function, key, value)]
    text = f"{name}({', '.join(f'{key}={described(value)}' for key, value in changed.items())})"
    clean = not any(has_bad_number(value) for value in changed.values())
    arguments |= changed

    def judge(result: Any) -> str:
        if nonsense:
            return f"took {', '.join(nonsense)} and returned {described(result)}"
        if has_nan(result) and (clean or name.startswith("bounds.")):
            return f"returned NaN: {described(result)}"
        return ""

    def call() -> Any:
        result = function(**arguments)
        if isinstance(result, contextlib.AbstractContextManager):
            with result:
                return None
        return result

    return call, text, judge


def bounded(call: Callable[[], Any], judge: Callable[[Any], str]) -> str:
    """Return the fault of a call, or nothing."""
    faulthandler.dump_traceback_later(20 * SECONDS, exit=True)  # for a hang in C
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of processor time: the machine may be busy
    try:
        with contextlib.redirect_stdout(sys.stderr):
            result = call()
        signal.setitimer(signal.ITIMER_PROF, 0)
        return judge(result)
    except ALLOWED as error:
        unclear = [part for part in UNCLEAR if part in str(error)]
        own = unclear and not raised_by_a_layer(error)
        return f"unclear: {type(error).__name__}: {str(error)[:200]}" if own else ""
    except Hang:
        return "hung: " + traceback.format_exc(limit=-2)[-300:]
    except (RuntimeError, MemoryError) as error:
        if raised_on_purpose(error) or raised_by_a_layer(error) or "t allocate memory" in str(error):
            return ""
        return f"{type(error).__name__}: {str(error)[:200]} at {place(error)}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]} at {place(error)}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()


def raised_on_purpose(error: BaseException) -> bool:
    """Return True if the package itself raised the error, not torch below it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(last.filename, last.lineno or 0)
    return "stochprune" in last.filename and line.strip().startswith("raise ")


def raised_by_a_layer(error: BaseException) -> bool:
    """Return True if one of torch's own layers refused its inputs, or its constructor the sizes."""
    return "/torch/nn/" in traceback.extract_tb(error.__traceback__)[-1].filename


def place(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/stochprune/" in f.filename]
    return f"{'/'.join(Path(frames[-1].filename).parts[-2:])}:{frames[-1].lineno}" if frames else "?"


def described(value: Any) -> str:
    if isinstance(value, Tensor):
        bad = " with NaN" if has_nan(value) else ""
        return f"{str(value.dtype)[6:]}{list(value.shape)} {value.layout} {value.device}{bad}".replace("torch.", "")
    try:
        return repr(value)[:80]
    except Exception as error:
        return type(error).__name__


def items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, (list, tuple)) else ()


def has_bad_number(value: Any) -> bool:
    if isinstance(value, (Tensor, np.ndarray)):
        value = torch.as_tensor(value)
        floating = value.is_floating_point() or value.is_complex()
        return floating and _is_readable(value) and not bool((value.abs() < 1e30).all())
    if isinstance(value, (int, float)):
        return not abs(value) < 1e30
    return any(has_bad_number(item) for item in items(value))


def has_nan(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and _is_readable(value) and bool(value.isnan().any())
    if isinstance(value, float):
        return math.isnan(value)
    return any(has_nan(item) for item in items(value))


def _is_readable(value: Tensor) -> bool:
    return value.device.type == "cpu" and value.layout == torch.strided


def _hang(*_: object) -> None:
    raise Hang


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
