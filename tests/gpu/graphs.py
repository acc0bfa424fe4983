"""CUDA graphs of a function."""

from __future__ import annotations

from collections.abc import Callable

import torch


def captured(run: Callable[[], torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """Return a graph of ``run``, and the tensor into which each replay writes its result.

    ``run`` is called once before, on a stream of its own, because a capture may not initialise anything.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph, result
