"""Two GPUs of different kinds in one process, tested without one: tensors without values, and no launch is made."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import bench.kernel_cases
from bench.kernel_cases import cases
from stochprune.kernels import layers, matmul, one_pass, routes, split_sum, tiles

OLD, NEW = torch.device("cuda:0"), torch.device("cuda:1")
KINDS = {
    OLD: SimpleNamespace(name="older", capability=(8, 0), multiprocessors=108),
    NEW: SimpleNamespace(name="newer", capability=(9, 0), multiprocessors=132),
}
OPS = {case.op: case for case in cases() if case.dtypes == "bf16 bf16"}


class Current:
    """The current device, as ``torch.cuda`` keeps it."""

    def __init__(self) -> None:
        self.device = OLD

    @contextlib.contextmanager
    def __call__(self, what: torch.device | Tensor) -> Iterator[None]:
        before, self.device = self.device, what.device if isinstance(what, Tensor) else what
        yield
        self.device = before


@pytest.fixture
def current(monkeypatch) -> Iterator[Current]:
    """Two devices that hold tensors without values."""
    now = Current()
    for name, function in {
        "device": now,
        "device_of": now,
        "get_device_capability": lambda device: KINDS[device].capability,
        "get_device_name": lambda device: KINDS[device].name,
        "get_device_properties": lambda device: SimpleNamespace(multi_processor_count=KINDS[device].multiprocessors),
        "is_current_stream_capturing": lambda: True,  # otherwise addresses are copied from pinned memory
    }.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(Tensor, "data_ptr", lambda t: 4096 * (1 + t.device.index))
    monkeypatch.setattr(Tensor, "__getitem__", element)
    monkeypatch.setattr(layers, "_captured", {})
    caches = (routes.constants, layers._layers)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for cache in caches:
            cache.cache_clear()
        yield now
    for cache in caches:
        cache.cache_clear()


def element(tensor: Tensor, at: int | slice | tuple[int, ...]) -> Tensor:
    """Return ``tensor[at]``; torch's own code sets the device, which a build for the CPU cannot."""
    if isinstance(at, tuple):
        for one in at:
            tensor = element(tensor, one)
        return tensor
    if isinstance(at, int):
        return tensor.select(0, at)
    start, stop, _ = at.indices(len(tensor))
    return tensor.narrow(0, start, stop - start)


def matrix(device: torch.device, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


@pytest.mark.parametrize("op", OPS)
def test_every_kernel_runs_on_the_device_of_its_tensors(op, current, monkeypatch):
    launches: list[tuple[torch.device, set[torch.device]]] = []

    def launch(kernel: Any, *args: Any, **options: Any) -> None:
        launches.append((current.device, {t.device for t in args if isinstance(t, Tensor)}))

    monkeypatch.setattr(type(tiles.locate), "run", launch)
    for device in (OLD, NEW):
        monkeypatch.setattr(bench.kernel_cases, "meta", lambda *s, dtype, at=device: matrix(at, *s, dtype=dtype))
        launches.clear()
        OPS[op].run()
        assert launches and all(launch == (device, {device}) for launch in launches), launches
        assert current.device == OLD


def test_tiles_and_shares_follow_the_device(current):
    old, new = (matmul.Tile.fit(matrix(device, 1, 128, 4096)) for device in KINDS)
    assert old in matmul.HALF[8] and new in matmul.HALF[9] and old != new
    assert [one_pass.tile_for(matrix(device, 64, 64)) for device in KINDS] == [one_pass.TILES[8], one_pass.TILES[9]]
    assert [split_sum.multiprocessors(device) for device in KINDS] == [108, 132]


def test_only_the_newer_device_reads_eight_bits(current):
    weights = {device: matrix(device, 16, 64, dtype=torch.float8_e4m3fn) for device in KINDS}
    assert tiles.readable(weights[NEW]) is weights[NEW]
    assert tiles.readable(weights[OLD]).dtype == torch.bfloat16


def test_each_device_has_its_own_constants(current, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    slow = routes.ROOFLINE._replace(bandwidth=1e12)
    routes.calibration_file().parent.mkdir()
    routes.calibration_file().write_text(json.dumps({"older": slow._asdict()}))
    for _ in range(2):  # read, then remembered
        assert routes.constants(OLD) == slow
        assert routes.constants(NEW) == routes.ROOFLINE


def test_each_device_has_its_own_table_of_layers(current):
    found = [layers._layers(((4096, 8192),), ((64, 64, 1),), ((7, 0, 0),), device) for device in (OLD, NEW, OLD, NEW)]
    assert [each.table.device for each in found] == [OLD, NEW, OLD, NEW]
    assert found[0] is found[2] and found[1] is found[3]


def test_capture_is_asked_of_the_device_itself(current, monkeypatch):
    """A capture on one device is none on the other."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: current.device == NEW)
    assert layers.capturing(NEW) and not layers.capturing(OLD)
    assert not layers.capturing(torch.device("cpu"))
