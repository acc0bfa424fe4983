"""A pytest plugin that records, without a GPU, every Triton launch that tests would make on one.

    python -O -m pytest --assert=plain -p tests.recorder --record launches.pickle tests/gpu

The tests run on tensors without storage where they can, else on the CPU. Launches are recorded as for an H200 and not
made, so nothing is asserted: ``-O`` drops assertions, and comparisons of tensors hold. A test that raises all the same
and is not among NEED_A_DEVICE ends the run with status 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["TRITON_INTERPRET"] = "0"  # tests/conftest.py would ask for the interpreter

import pytest
import torch

MULTIPROCESSORS = 132  # of an H200
ARCH = 90
WITHOUT_TRITON = ("test_cuda_backend.py", "test_scores.py")
"""Files of tests that launch CUDA C++ kernels, or work in float64, which the reference serves."""
NEED_A_DEVICE = ("test_torch_compile_gives_the_eager_bits", "test_more_draws_than_an_axis_holds[cuda]")
"""Tests that fail whatever they launch: one compiles for the device it finds, one launches CUDA C++ itself."""
WITH_STORAGE = ("test_adam.py", "test_capture.py", "test_commands.py", "test_layers.py")
"""Files of tests that ask for values, or go through torch.library, which makes no launches for empty tensors."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, required=True, help="where the launches are stored: {key: Launch}")


def pytest_configure(config: pytest.Config) -> None:
    from bench.launches import recorded

    config.stash[STACK] = stack = contextlib.ExitStack()
    config.stash[LAUNCHES] = stack.enter_context(recorded(ARCH))
    for target, replacement in replacements():
        stack.enter_context(mock.patch(target, replacement))


STACK = pytest.StashKey[contextlib.ExitStack]()
LAUNCHES = pytest.StashKey[list]()


def replacements() -> Iterator[tuple[str, Any]]:
    """Replace values that only a GPU can compute, and let comparisons succeed."""
    from stochprune import kernels

    yield "stochprune.kernels.split_sum.multiprocessors", lambda device: MULTIPROCESSORS
    yield "stochprune.kernels.supports", lambda *tensors: all(t.dtype != torch.float64 for t in tensors)
    yield "stochprune.backends._serving", {}
    yield "stochprune.backends._row", lambda device: (kernels, importlib.import_module("stochprune.reference"))
    yield (
        "stochprune.reference.masked.factor",
        lambda logits, *address: (logits, logits),
    )  # the exact mask, which is slow
    for name, value in (("item", 0.5), ("__bool__", False), ("__float__", 0.5), ("__int__", 0), ("__index__", 0)):
        yield f"torch.Tensor.{name}", answered(getattr(torch.Tensor, name), value)
    for name in ("cpu", "tolist"):
        yield f"torch.Tensor.{name}", on_zeros(getattr(torch.Tensor, name))
    yield "torch.testing.assert_close", lambda *args, **options: None
    yield "torch.equal", lambda *args: True
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        yield f"torch.{'Tensor.' if owner is torch.Tensor else ''}{name}", zeroed(getattr(owner, name))
    yield "torch.cuda.mem_get_info", lambda *args: (1 << 60, 1 << 60)
    yield "torch.cuda.device_count", lambda: 1
    yield "torch.cuda.get_device_name", lambda *args: "recorded"
    for name in ("Stream", "CUDAGraph", "current_stream", "synchronize"):
        yield f"torch.cuda.{name}", mock.MagicMock()
    for name in ("stream", "graph", "device_of"):
        yield f"torch.cuda.{name}", lambda *args, **options: contextlib.nullcontext()


def answered(method: Callable[..., Any], value: Any) -> Callable[..., Any]:
    return lambda t: value if t.is_meta else method(t)


def on_zeros(method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda t: method(torch.zeros(t.shape, dtype=t.dtype) if t.is_meta else t)


def zeroed(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *args, **options: allocate(*args, **options).zero_()


def pytest_fixture_setup(fixturedef: Any, request: pytest.FixtureRequest) -> torch.device | None:
    """The fixture ``device``."""
    if fixturedef.argname != "device":
        return None
    device = torch.device("cpu" if request.path.name in WITH_STORAGE else "meta")
    fixturedef.cached_result = (device, fixturedef.cache_key(request), None)
    return device


def shorten(module: Any) -> None:
    """Repeat less, and train for fewer epochs: the same kernels would be launched again."""
    if hasattr(module, "REPEATS"):
        module.REPEATS = 2
    if hasattr(module, "STUDY"):
        tuning = dataclasses.replace(module.STUDY.finetune, epochs=1)
        module.STUDY = dataclasses.replace(module.STUDY, dense_epochs=1, finetune=tuning)
    if hasattr(module, "CERTIFY"):
        prior = dataclasses.replace(module.CERTIFY.prior, prior_epochs=1)
        module.CERTIFY = dataclasses.replace(module.CERTIFY, prior=prior)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if item.path.name not in WITHOUT_TRITON]
    for module in {item.module for item in items}:
        shorten(module)
    for item in items:
        item.own_markers = [marker for marker in item.own_markers if marker.name not in ("skip", "skipif")]
        if item.name in NEED_A_DEVICE:
            item.add_marker(pytest.mark.xfail(reason="needs a device", strict=True))


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[STACK].close()
    launches = {(launch.specialisation.key, launch.grid): launch for launch in session.config.stash[LAUNCHES]}
    session.config.option.record.write_bytes(pickle.dumps(list(launches.values())))
