"""On a GPU the CUDA C++ backend draws the bits of the CPU's reference, inside a graph too, and past 2^31 elements."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from stochprune import backends, reference, rng

SEED, DRAW, STREAM = torch.tensor([-(2**62) - 5]), torch.tensor([2**32 - 3]), 2**31 - 1


@pytest.fixture
def cuda() -> ModuleType:
    try:
        return backends.load("cuda")
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("row_offset, col_offset", [(0, 0), (2**32 - 1024, 2**34 - 1600), (11, 2**31 + 33)])
def test_keep_mask(
    cuda: ModuleType, row_offset: int, col_offset: int, device: torch.device, generator: torch.Generator
) -> None:
    drawn = torch.randint(0, rng.LEVELS + 1, (1024, 1536), generator=generator, dtype=torch.int32).to(torch.uint16)
    expected = reference.keep_mask(drawn, SEED, DRAW, STREAM, row_offset, col_offset)
    mask = cuda.keep_mask(drawn.to(device), SEED.to(device), DRAW.to(device), STREAM, row_offset, col_offset)
    assert torch.equal(mask.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows, cols", [(37, 501), (256, 512)])
def test_masked_weight(cuda: ModuleType, dtype: torch.dtype, rows: int, cols: int, device: torch.device) -> None:
    g = torch.Generator().manual_seed(5)
    weight = torch.randn(rows, cols, generator=g).to(dtype).to(device)
    logits = (2 * torch.randn(rows, cols, generator=g)).to(device)
    at = (SEED.to(device), DRAW.to(device), STREAM, "straight_through", 1.0)
    keep = reference.keep_mask(cuda.threshold_from_logits(logits).cpu(), SEED, DRAW, STREAM, 0, 0).to(device)
    assert torch.equal(cuda.masked_weight(weight, logits, *at, dtype)[0], weight * keep)


def test_a_graph_draws_fresh_masks(cuda: ModuleType, device: torch.device) -> None:
    g = torch.Generator().manual_seed(1)
    x, weight, logits = (
        torch.randn(shape, generator=g).bfloat16().to(device) for shape in ((2, 32, 512), (384, 512), (384, 512))
    )
    seed, draw = torch.tensor([8], device=device), torch.tensor([5, 6], device=device)

    def run() -> torch.Tensor:
        return cuda.masked_linear(x, weight, logits, None, seed, draw, 3, "straight_through", 1.0)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    seen = []
    for value in (5, 7, 2**32 - 2):
        draw.copy_(torch.tensor([value, value + 1]))
        graph.replay()
        assert torch.equal(captured, run())
        seen.append(captured.clone())
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def test_more_than_2_to_the_31_elements(cuda: ModuleType, device: torch.device) -> None:
    rows, cols = 2**17 + 40, 2**14 + 8
    if torch.cuda.mem_get_info(device)[0] < 24 << 30:
        pytest.skip("needs 24 GiB of GPU memory")
    weight = torch.ones(rows, cols, dtype=torch.bfloat16, device=device)
    logits = torch.zeros_like(weight)
    at = (SEED.to(device), DRAW.to(device), STREAM, "straight_through", 1.0)
    masked = cuda.masked_weight(weight, logits, *at, torch.bfloat16)[0]
    for start in (0, rows // 2, rows - 8):
        threshold = rng.threshold_from_logits(logits[start : start + 8].cpu())
        expected = reference.keep_mask(threshold, SEED, DRAW, STREAM, start, 0)
        assert torch.equal(masked[start : start + 8].cpu() != 0, expected)
