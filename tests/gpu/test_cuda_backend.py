"""The CUDA C++ backend samples the bits of the CPU's reference, inside a graph too, and past 2^31 elements."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from stochprune import backends, reference, rng
from stochprune.address import Mask
from tests.backends.cases import moved
from tests.gpu.graphs import captured

AT = Mask(torch.tensor([-(2**62) - 5]), torch.tensor([2**32 - 3]), 2**31 - 1)
FIRST = [(0, 0), (2**32 - 1024, 2**34 - 1600), (11, 2**31 + 33)]  # row and column


@pytest.fixture
def cuda() -> ModuleType:
    try:
        return backends.load("cuda")
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("row, col", FIRST)
def test_keep_mask(cuda: ModuleType, row: int, col: int, device: torch.device, generator: torch.Generator) -> None:
    drawn = torch.randint(0, rng.LEVELS + 1, (1024, 1536), generator=generator, dtype=torch.int32).to(torch.uint16)
    at = AT._replace(row=row, col=col)
    ours = cuda.keep_mask(drawn.to(device), mask=moved(at, device))
    assert torch.equal(ours.cpu(), reference.keep_mask(drawn, mask=at))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows, cols", [(37, 501), (256, 512)])
@pytest.mark.parametrize("first", FIRST, ids=str)
def test_masked_weight(
    cuda: ModuleType, dtype: torch.dtype, rows: int, cols: int, first: tuple[int, int], device: torch.device
) -> None:
    g = torch.Generator().manual_seed(5)
    weight = torch.randn(rows, cols, generator=g).to(dtype).to(device)
    logits = (2 * torch.randn(rows, cols, generator=g)).to(device)
    at = AT._replace(row=first[0], col=first[1])
    keep = reference.keep_mask(cuda.threshold_from_logits(logits).cpu(), mask=at).to(device)
    masked = cuda.masked_weight(weight, logits, mask=moved(at, device), dtype=dtype)
    assert torch.equal(masked[0], weight * keep)


def test_a_graph_samples_fresh_masks(cuda: ModuleType, device: torch.device) -> None:
    g = torch.Generator().manual_seed(1)
    x, weight, logits = (
        torch.randn(shape, generator=g).bfloat16().to(device) for shape in ((2, 32, 512), (384, 512), (384, 512))
    )
    seed, draw = torch.tensor([8], device=device), torch.tensor([5, 6], device=device)

    def run() -> torch.Tensor:
        return cuda.masked_linear(x, weight, logits, None, mask=Mask(seed, draw, 3))

    graph, result = captured(run)
    seen = []
    for value in (5, 7, 2**32 - 2):
        draw.copy_(torch.tensor([value, value + 1]))
        graph.replay()
        assert torch.equal(result, run())
        seen.append(result.clone())
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def test_more_than_2_to_the_31_elements(cuda: ModuleType, device: torch.device) -> None:
    rows, cols = 2**17 + 40, 2**14 + 8
    if torch.cuda.mem_get_info(device)[0] < 24 << 30:
        pytest.skip("needs 24 GiB of GPU memory")
    weight = torch.ones(rows, cols, dtype=torch.bfloat16, device=device)
    logits = torch.zeros_like(weight)
    masked = cuda.masked_weight(weight, logits, mask=moved(AT, device), dtype=torch.bfloat16)[0]
    for start in (0, rows // 2, rows - 8):
        threshold = rng.threshold_from_logits(logits[start : start + 8].cpu())
        expected = reference.keep_mask(threshold, mask=AT._replace(row=start))
        assert torch.equal(masked[start : start + 8].cpu() != 0, expected)
