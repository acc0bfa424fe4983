"""The product with sparse rows, on every backend."""

from __future__ import annotations

import pytest
import torch

from stochprune.sparse_rows import SparseRows, pack, unpack
from tests.backends.cases import TOLERANCE, error


def sparse(generator, n: int, k: int, sparsity: float) -> torch.Tensor:
    """A matrix whose rows differ in their kept weights: the second is empty, the last full."""
    weight = torch.randn(n, k, generator=generator)
    weight[torch.rand(n, k, generator=generator) < sparsity] = 0
    weight[1:2] = 0
    weight[-1:] = torch.randn(k, generator=generator)
    return weight


def there(rows: SparseRows, device: str) -> SparseRows:
    return SparseRows(*(tensor.to(device) for tensor in rows))


@pytest.mark.parametrize("n, k", [(1, 1), (3, 2), (5, 63), (16, 64), (17, 65), (33, 257), (70, 300)])
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 1.0])
def test_every_size_and_batch(backend, device, n, k, sparsity, generator):
    weight, bias = sparse(generator, n, k, sparsity), torch.randn(n, generator=generator)
    rows = pack(weight)
    assert torch.equal(unpack(rows, k), weight)
    for batch in (*range(1, 10), 15, 16, 17, 20, 24, 33, 40):
        x = torch.randn(batch, k, generator=generator)
        for b in (bias, None):
            y = backend.sparse_linear(x.to(device), there(rows, device), None if b is None else b.to(device))
            assert y.dtype == torch.float32 and y.shape == (batch, n) and y.is_contiguous()
            assert error(y, x.double() @ weight.double().T + (0 if b is None else b)) < TOLERANCE[torch.float32]


def test_memory_layouts_of_x(backend, device, generator):
    weight = sparse(generator, 20, 30, 0.8)
    rows = there(pack(weight), device)
    wide = torch.randn(60, 60, generator=generator)
    for x in (wide[:7, :30], wide[:30, :7].T, wide[:7, ::2], wide[0, :30].expand(7, 30)):
        assert error(backend.sparse_linear(x.to(device), rows, None), x.double() @ weight.double().T) < 2e-6


def test_no_weights_no_rows_no_columns_no_examples(backend, device):
    for batch, n, k in [(3, 4, 5), (0, 4, 5), (3, 0, 5), (3, 4, 0), (20, 4, 0), (1, 4, 0)]:
        rows, bias = there(pack(torch.zeros(n, k)), device), torch.arange(float(n), device=device)
        y = backend.sparse_linear(torch.ones(batch, k, device=device), rows, bias)
        assert torch.equal(y.cpu(), bias.cpu().expand(batch, n))


@pytest.mark.parametrize("batch", [1, 3, 6, 12, 30])
def test_a_weight_that_is_0_reads_nothing(backend, device, batch, generator):
    """The dense product of NaN or infinity and 0 is NaN."""
    weight = torch.tensor([[1.0, 0, 2], [0, 3, 0], [0, 0, 0]])
    rows = there(pack(weight), device)
    for bad in (float("nan"), float("inf")):
        x = torch.ones(batch, 3)
        x[-1, 0] = bad
        y = backend.sparse_linear(x.to(device), rows, None).cpu()
        assert torch.equal(y[-1, 1:], torch.tensor([3.0, 0])) and not y[-1, 0].isfinite()
        assert torch.equal(y[:-1], torch.tensor([3.0, 3, 0]).expand(batch - 1, 3))
    weight[1, 1] = float("nan")
    nan = there(pack(weight), device)
    y = backend.sparse_linear(torch.ones(batch, 3, device=device), nan, None).cpu()
    assert torch.equal(y[:, 0], torch.full((batch,), 3.0)) and y[:, 1].isnan().all()


def test_the_last_of_65536_columns(backend, device):
    weight = torch.zeros(2, 1 << 16)
    weight[0, -1], weight[1, 0], weight[1, 40000] = 2.0, 3.0, 4.0
    x = torch.zeros(5, 1 << 16)
    x[:, -1], x[:, 0], x[:, 40000] = torch.arange(5.0), 1.0, 10.0
    y = backend.sparse_linear(x.to(device), there(pack(weight), device), None).cpu()
    assert torch.equal(y, torch.stack([2 * torch.arange(5.0), torch.full((5,), 43.0)], 1))


def test_an_output_depends_on_its_own_example_alone(backend, device, generator):
    """The compiled kernels give the same bits in any batch and with any number of threads."""
    if backend.NAME != "native":
        pytest.skip("torch's product, which promises nothing")
    rows, x = pack(sparse(generator, 700, 300, 0.6)), torch.randn(37, 300, generator=generator)
    bias = torch.randn(700, generator=generator)
    expected = torch.cat([backend.sparse_linear(row[None], rows, bias) for row in x])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            for batch in (1, 2, 4, 5, 8, 9, 16, 17, 37):
                y = torch.cat([backend.sparse_linear(part, rows, bias) for part in x.split(batch)])
                assert torch.equal(y, expected)
    finally:
        torch.set_num_threads(threads)


def test_rows_that_differ_are_shared_among_threads(backend, device, generator):
    weight = torch.zeros(400, 500)
    weight[7] = torch.randn(500, generator=generator)
    weight[390:] = torch.randn(10, 500, generator=generator)
    rows, threads = there(pack(weight), device), torch.get_num_threads()
    x = torch.randn(16, 500, generator=generator)
    try:
        for count in (2, 3, 8):
            torch.set_num_threads(count)
            assert error(backend.sparse_linear(x.to(device), rows, None), x.double() @ weight.double().T) < 2e-6
    finally:
        torch.set_num_threads(threads)
