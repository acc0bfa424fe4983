from __future__ import annotations

import warnings

import pytest
import torch

from stochprune import backends, reference
from stochprune.address import Mask
from stochprune.functional import masked_linear

T = torch.ones(2, 2)


@pytest.fixture
def without_native(monkeypatch):
    backends.forget()
    importing = backends._import
    missing = ImportError("no compiled extension")
    monkeypatch.setattr(backends, "_import", lambda name: missing if name == "native" else importing(name))
    yield
    backends.forget()


def test_each_dtype_finds_its_backend():
    assert backends.resolve(T).NAME == "native"
    assert backends.resolve(T.bfloat16(), T).NAME == "native"
    assert backends.resolve(T.double()).NAME == "reference"
    assert backends.resolve(T, T.half()).NAME == "reference"
    assert backends.resolve(T.to(torch.uint16)).NAME == "native"


def test_the_override(monkeypatch):
    monkeypatch.setenv(backends.OVERRIDE, "reference")
    assert backends.resolve(T).NAME == "reference"
    monkeypatch.setenv(backends.OVERRIDE, "cudnn")
    with pytest.raises(ValueError, match=r"backend 'cudnn'.*native, triton, cuda, reference"):
        masked_linear(T, T, T, seed=0, draw=0, stream=0)


@pytest.mark.parametrize(
    "name, tensor, given", [("cuda", T, "float32 on cpu"), ("native", T.double(), "float64 on cpu")]
)
def test_a_backend_that_does_not_take_the_tensors_is_refused(name, tensor, given, monkeypatch):
    try:
        backends.load(name)
    except RuntimeError as error:
        pytest.skip(str(error))
    monkeypatch.setenv(backends.OVERRIDE, name)
    with pytest.raises(RuntimeError, match=rf"STOCHPRUNE_BACKEND={name}.*{given}"):
        masked_linear(tensor, tensor, tensor, seed=0, draw=0, stream=0)


def test_a_missing_extension_warns_once_and_the_reference_serves(without_native):
    zero = torch.tensor([0])
    expected = reference.masked_linear(T[None], T, T, None, mask=Mask(zero, zero, 0))[0]
    with pytest.warns(backends.BackendWarning, match=r"native.* cpu.*extension") as seen:
        y = masked_linear(T, T, T, seed=0, draw=0, stream=0)
        masked_linear(T, T, T, seed=0, draw=1, stream=0)
    assert len(seen) == 1
    torch.testing.assert_close(y, expected)


def test_a_missing_backend_that_is_asked_for_is_an_error(without_native, monkeypatch):
    monkeypatch.setenv(backends.OVERRIDE, "native")
    with pytest.raises(RuntimeError, match=r"'native'.*extension"):
        backends.resolve(T)


@pytest.mark.parametrize("seen", [False, True])
def test_a_backend_is_ready_only_where_its_device_is(monkeypatch, seen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen)
    rows = [line.split(None, 2) for line in backends.table().splitlines()[1:-1]]
    for device, name, state in rows:
        usable = state.startswith("ready")
        assert not usable or device == "cpu" or seen, (device, name, state)
        assert usable or "not " in state
    assert [state.startswith("ready") for device, name, state in rows if name == "reference"] == [True, seen]


def test_the_table_names_every_backend_and_its_state(without_native):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = backends.table()
    assert "native      not available: no compiled extension" in text
    assert "reference   ready" in text and "override: STOCHPRUNE_BACKEND" in text
