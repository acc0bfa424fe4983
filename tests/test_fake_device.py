"""All tensors of a run are on the device of its model, tested without a GPU; see fake_device.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

PROGRAM = Path(__file__).with_name("fake_device.py")

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="of a later torch"
)


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    run = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_a_mix_of_devices_is_found(found):
    assert "cpu and pretend:0" in found["mixing"]


def test_nothing_else_mixes_devices(found):
    failed = {name: text for name, text in found.items() if text and name != "mixing"}
    assert not failed, "\n\n".join(f"{name}\n{text}" for name, text in failed.items())
    assert len(found) > 40
