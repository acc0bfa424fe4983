"""The self-test finds broken backends, and its numbers are those of the contract."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stochprune import _C, backends, native, reference, rng
from stochprune.doctor import self_tests
from stochprune.doctor.self_test import VECTORS

GOLDEN = json.loads((Path(__file__).parents[1] / "mask_vectors.json").read_text())["uniform16"]


@pytest.mark.parametrize(("vector", "golden"), list(zip(VECTORS, GOLDEN, strict=True)))
def test_the_vectors_are_those_of_the_contract(vector, golden):
    address, (row, col), bits = vector
    assert address == tuple(golden[name] for name in ("seed", "draw", "stream", "row_offset", "col_offset"))
    assert list(bits) == golden["values"][row][col : col + 4]


def outcomes() -> dict[str, tuple[str, ...]]:
    return {test.backend: test.failures for test in self_tests()}


def test_every_backend_of_this_machine_passes_in_time():
    tests = self_tests()
    assert {test.backend.partition("-")[0] for test in tests} >= {"contract", "native", "reference"}
    assert not [test for test in tests if not test.passed]
    assert sum(test.seconds for test in tests if test.backend != "triton") < 10  # not its interpreter


def wrong_bit(*arguments, **options):
    kept = reference.keep_mask(*arguments, **options)
    kept[0, 0] ^= True
    return kept


def scaled_gradient(*arguments, **options):
    dx, dweight, dlogits = reference.masked_linear_backward(*arguments, **options)
    return dx, dweight, dlogits * 1.01


def nan_gradient(*arguments, **options):
    dx, dweight, dlogits = reference.masked_linear_backward(*arguments, **options)
    return dx * float("nan"), dweight, dlogits


def raises(*arguments, **options):
    raise ZeroDivisionError("tile of size 0")


@pytest.mark.usefixtures("without_interpreter")
@pytest.mark.parametrize(
    ("function", "broken", "named"),
    [
        ("keep_mask", wrong_bit, "keep mask"),
        ("masked_linear_backward", scaled_gradient, "gradient of the logits"),
        ("masked_linear_backward", nan_gradient, "gradient of x"),
        ("masked_linear", raises, "ZeroDivisionError: tile of size 0"),
    ],
)
def test_a_broken_backend_is_named_with_what_is_wrong(monkeypatch, function, broken, named):
    monkeypatch.setattr(native, function, broken)
    found = outcomes()
    assert not found["contract"] and not found["reference"]
    failures = [failure for name, failed in found.items() if name.startswith("native") for failure in failed]
    assert failures and all(named in failure for failure in failures)


@pytest.mark.usefixtures("without_interpreter")
def test_a_broken_contract_is_found(monkeypatch):
    uniform16 = rng.uniform16
    monkeypatch.setattr(rng, "uniform16", lambda *size, **at: uniform16(*size, **at) ^ 1)
    assert outcomes()["contract"]


@pytest.mark.usefixtures("without_interpreter")
def test_a_backend_that_is_missing_is_not_tested(monkeypatch):
    importing = backends._import
    missing = ImportError("no compiled extension")
    monkeypatch.setattr(backends, "_import", lambda name: missing if name == "native" else importing(name))
    assert not [name for name in outcomes() if name.startswith("native")]


@pytest.mark.usefixtures("without_interpreter")
def test_the_instruction_set_stays():
    before = _C.instruction_set()
    self_tests()
    assert _C.instruction_set() == before
