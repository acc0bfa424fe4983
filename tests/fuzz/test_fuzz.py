"""The public functions and commands under nonsense: none crashes, hangs, prints a traceback or returns a number for it.

``python -m tests.fuzz.worker SEED COUNT`` draws others. A new public function needs a base call in ``bases.py``.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import worker
from tests.fuzz.arguments.layers import MASKED_MODULES
from tests.fuzz.bases import bases, public

ROOT = Path(__file__).parents[2]
CALLS, SEED = 400, 20211021
# These name a file or a model that the fuzz does not have, or devices that are not there.
REFUSED = {"data.cifar10", "data.idx", "data.load", "data.mnist", "pac_bayes.load_certificate", "pac_bayes.replay"}
REFUSED |= {
    "training.TensorBoard",
    "load_sparse",
    "pac_bayes.run_certify",
    "pac_bayes.rerun",
    "nn.semi_structured",
    "nn.MaskedTransposedLinear",
    "nn.NMMaskedTransposedLinear",
}
REFUSED |= {f"nn.{name}" for name in MASKED_MODULES}


def test_every_public_function_has_a_base_call():
    assert {name for name, _ in public()} - set(bases()) == set()


@pytest.mark.parametrize("name", sorted(set(bases()) - REFUSED))
def test_the_base_calls_are_valid(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    worker.files()
    function, make = bases()[name]
    result = function(**make())
    if isinstance(result, contextlib.AbstractContextManager):
        with result:
            pass


def test_nonsense_is_refused():
    """In a process of its own: a crash would end it, and the last line of its standard error names the call."""
    command = [sys.executable, "-m", "tests.fuzz.worker", str(SEED), str(CALLS)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = run.stderr.splitlines()[-30:]
    assert run.returncode == 0, f"ended by {run.returncode}: {last}"
    *faults, end = map(json.loads, run.stdout.splitlines())
    assert end == {"calls": CALLS}
    assert not faults, "\n".join(f"{fault['call']}: {fault['fault']}" for fault in faults)
