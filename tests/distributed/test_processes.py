"""Processes on a CPU, with gloo, stand for devices."""

from tests.distributed import data_parallel, fsdp, page, shrunk, shrunk_edges, tensor_parallel
from tests.distributed.processes import failures


def test_four_processes_compute_what_one_does():
    failed = failures(4, [tensor_parallel, fsdp, data_parallel, shrunk, shrunk_edges, page])
    assert not failed, "\n".join(f"{name}:\n{said}" for name, said in failed.items())


def test_two_processes_shrink_as_one_does():
    failed = failures(2, [shrunk, shrunk_edges])
    assert not failed, "\n".join(f"{name}:\n{said}" for name, said in failed.items())
