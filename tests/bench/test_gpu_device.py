"""`make gpu-check` measures, and notices a lost GPU, with a mocked torch.cuda."""

from __future__ import annotations

from unittest.mock import MagicMock

import pytest
import torch

from bench.gpu import device
from bench.suite import costs

CUDA = torch.device("cuda")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """The parts of torch.cuda that the measurements call; a bench of Triton that takes 12 ms a call."""
    module = MagicMock()
    for name in ("Stream", "current_stream", "stream", "CUDAGraph", "graph", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, getattr(module, name))
    module.graph.return_value.__exit__.return_value = False  # errors pass
    monkeypatch.setattr(torch.cuda, "Event", module.Event)
    module.Event.return_value.elapsed_time.return_value = 12.0
    module.do_bench.side_effect = lambda run, **_: (run(), 12.0)[1]
    monkeypatch.setattr("triton.testing.do_bench", module.do_bench)
    monkeypatch.setattr(device, "_failed_captures", [])
    return module


def test_a_graph_holds_every_run_and_its_time_is_shared(cuda: MagicMock) -> None:
    calls: list[int] = []
    runs = [lambda i=i: calls.append(i) for i in range(4)]
    assert device.graph_us(runs) == 12_000 / 4 and device.eager_us(runs[0]) == 12_000
    assert calls == [0, 1, 2, 3, 0, 1, 2, 3, 0]  # before the capture, in it, and eagerly
    assert cuda.CUDAGraph.return_value.replay.call_count == 5 + 5  # of 12 ms each, and no cache is cleared
    cuda.do_bench.assert_called_once()  # eagerly
    assert device.healthy()


def test_a_failed_capture_is_raised_and_the_process_replaced(cuda: MagicMock) -> None:
    def run() -> None:
        if cuda.graph.called:
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="capturing"):
        device.graph_us([run])
    assert not device.healthy()


def test_the_peak_is_what_a_call_adds(cuda: MagicMock, monkeypatch: pytest.MonkeyPatch) -> None:
    held = [100]
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: held[0])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: max(held))
    assert costs.peak_bytes(lambda: held.append(150), CUDA) == 50


def test_the_host_waits_for_nothing_between_its_steps(cuda: MagicMock) -> None:
    calls: list[int] = []
    assert costs.host_us(lambda: calls.append(cuda.synchronize.call_count), CUDA) > 0
    assert calls == [round for round in range(1, 6) for _ in range(costs.HOST_CALLS)]


def test_a_lost_context_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(device, "synchronize", lost)
    assert not device.healthy() and "illegal memory" in str(device.lost())


def test_an_error_that_goes_with_its_report_is_no_lost_context(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [RuntimeError("CUDA error: out of memory")]

    def once() -> None:
        while errors:
            raise errors.pop()

    monkeypatch.setattr(device, "synchronize", once)
    assert device.lost() is None and device.healthy()


def test_launches_are_counted_by_name() -> None:
    launched = [
        "cudaLaunchKernel",
        "cuLaunchKernel",
        "cuLaunchKernelEx",
        "cudaLaunchKernelExC",
        "cudaLaunchCooperativeKernel",
    ]
    assert costs.count_launches([*launched, "cudaMemcpyAsync", "aten::mm", "cudaGraphLaunch", "prepass_kernel"]) == 5
