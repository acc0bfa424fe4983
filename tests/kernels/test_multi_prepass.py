"""multi_prepass: one launch gives each layer what its own prepass gives it."""

from __future__ import annotations

import pytest
import torch

from stochprune.kernels.mask import Mask
from stochprune.kernels.multi_prepass import MultiPrepass
from stochprune.kernels.prepass import mask_weight


def layers(shapes: list[tuple[int, ...]], device: torch.device) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    g = torch.Generator().manual_seed(3)
    return tuple([torch.randn(shape, generator=g).to(device) for shape in shapes] for _ in range(2))


@pytest.mark.parametrize("shapes", [[(33, 130), (5, 3, 2, 2), (64, 256)], [(32, 64), (64, 128)], [(7, 5)]], ids=str)
@pytest.mark.parametrize("estimator", ["straight_through", "concrete"])
def test_equal_to_single_launches(shapes: list[tuple[int, ...]], estimator: str, device: torch.device) -> None:
    weights, logits = layers(shapes, device)
    streams = [11 * i + 2 for i in range(len(shapes))]
    mask = Mask(torch.tensor([9], device=device), torch.tensor([4], device=device), 0, estimator, 0.5)
    together = MultiPrepass(weights, logits, streams, torch.float16)
    for _ in range(2):
        for w, logit, stream, out in zip(weights, logits, streams, together(mask), strict=True):
            one = mask_weight(w.flatten(1), logit.flatten(1), mask._replace(stream=stream), torch.float16)
            assert torch.equal(out.flatten(1), one[0])
        mask.draw.add_(1)


def test_follows_a_parameter_that_moves(device: torch.device) -> None:
    weights, logits = layers([(8, 64)], device)
    mask = Mask(torch.tensor([9], device=device), torch.tensor([4], device=device), 0, "expected", 1.0)
    together = MultiPrepass(weights, logits, [1], torch.float32)
    before = together(mask)[0].clone()
    weights[0].data = 2 * weights[0].data
    torch.testing.assert_close(together(mask)[0], 2 * before)


def test_bad_input(device: torch.device) -> None:
    weights, logits = layers([(8, 64), (4, 4)], device)
    with pytest.raises(ValueError, match="2 weights, 2 logits and 1 streams"):
        MultiPrepass(weights, logits, [1], torch.float32)
    with pytest.raises(ValueError, match="weights must be contiguous and of one dtype"):
        MultiPrepass([weights[0].mT, weights[1]], logits, [1, 2], torch.float32)
    with pytest.raises(ValueError, match="logits must be contiguous and of one dtype"):
        MultiPrepass(weights, [logits[0], logits[1].half()], [1, 2], torch.float32)
