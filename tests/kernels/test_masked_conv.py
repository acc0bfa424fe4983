"""masked_convolution in Triton: values against the reference in float64, masks bit for bit, and when it is used."""

from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stochprune import reference
from stochprune.address import Mask
from stochprune.kernels import conv_route, masked_convolution, tiles
from stochprune.kernels.conv_route import choose
from stochprune.kernels.routes import OVERRIDE, ROUTES
from stochprune.kernels.thresholds import cache
from tests.backends.cases import ESTIMATORS, mask
from tests.kernels.test_masked_linear import agree

MODULE = importlib.import_module("stochprune.kernels.masked_conv")  # the package has a function of this name
# draws, shape of x of a draw, of the weight, stride, padding, dilation
CASES = {
    "3 x 3": (1, (2, 5, 7, 9), (11, 5, 3, 3), (1, 1), (1, 1), (1, 1)),
    "an example a draw": (3, (1, 5, 6, 6), (70, 5, 3, 3), (1, 1), (1, 1), (1, 1)),
    "strided, dilated": (3, (2, 4, 8, 11), (9, 4, 3, 2), (2, 1), (2, 0), (1, 3)),
    "1 x 1": (2, (3, 70, 5, 5), (130, 70, 1, 1), (2, 2), (0, 0), (1, 1)),
    "many tokens": (1, (2, 3, 9, 10), (8, 3, 5, 3), (1, 1), (2, 1), (1, 1)),
    "a long reduction": (1, (1, 200, 3, 3), (4, 200, 3, 3), (1, 1), (0, 0), (1, 1)),
    "1d": (2, (2, 6, 40), (7, 6, 5), (3,), (2,), (2,)),
}


RULE = [
    (1, 256, 56, "prepass"),
    (1, 1, 7, "in_register"),
    (256, 1, 14, "thresholds"),
    (64, 8, 4, "thresholds"),
    (64, 256, 56, "prepass"),
]  # draws, examples of a draw, height and width, route


@pytest.fixture(autouse=True)
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(OVERRIDE, chosen := getattr(request, "param", "in_register"))
    return chosen


LOOPS = pytest.mark.parametrize("route", ["in_register", "thresholds"], indirect=True)


def packed(stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...], groups: int = 1) -> list[int]:
    return [*stride, *padding, *dilation, *[0] * len(stride), 0, groups]


def tensors(
    case: str, dtypes: tuple[torch.dtype, torch.dtype], device: torch.device, g: torch.Generator
) -> list[Tensor]:
    draws, x, weight, *_ = CASES[case]
    made = [torch.randn(shape, generator=g) for shape in ((draws, *x), weight, weight, weight[:1])]
    kinds = (dtypes[0], dtypes[1], dtypes[1], dtypes[0])
    return [t.to(device, dtype) for t, dtype in zip(made, kinds, strict=True)]


def exact(x: Tensor, weight: Tensor, logits: Tensor, bias: Tensor, at: Mask, geometry: list) -> Tensor:
    """Return torch's convolutions of the draws with the reference's masked filters, in float64."""
    filters = reference.masked_weight(weight.double(), logits.double(), mask=at, dtype=torch.float64)
    plain = {3: F.conv1d, 4: F.conv2d}[weight.dim()]
    return torch.stack([plain(one.double(), w, bias.double(), *geometry) for one, w in zip(x, filters, strict=True)])


def check(case: str, given: list[Tensor], at: Mask) -> None:
    x, weight, logits, bias = given
    geometry = CASES[case][3:]
    y = masked_convolution(x if len(x) > 1 else x[0], weight, logits, bias, mask=at, geometry=packed(*geometry))
    expected = exact(x, weight, logits, bias, at, geometry)
    assert y.dtype == x.dtype
    agree(y, expected if len(x) > 1 else expected[0], x.dtype)


@LOOPS
@pytest.mark.parametrize("case", CASES)
def test_values(case: str, device: torch.device, generator: torch.Generator) -> None:
    given = tensors(case, (torch.float32, torch.float32), device, generator)
    check(case, given, mask(9, [*range(3, 3 + len(given[0]))], 7, device=device))


@pytest.mark.parametrize(
    "route, estimator",
    [*(("in_register", name) for name in ESTIMATORS), ("thresholds", "straight_through")],
    indirect=["route"],
)
@pytest.mark.parametrize("masters", [torch.float16, torch.float32])
@pytest.mark.parametrize("offsets", [{}, {"row": 2**32 - 80, "col": 2**34 - 512}], ids=str)
def test_estimators_dtypes_and_shards(estimator, masters, offsets, device, generator) -> None:
    case = "strided, dilated"
    given = tensors(case, (torch.float16, masters), device, generator)
    check(case, given, mask(2**63 + 5, [4, 2**32 - 1, 0], 7, estimator, 0.7, device=device, **offsets))


@pytest.mark.parametrize("case", ["3 x 3", "an example a draw"])
def test_memory_formats(case: str, device: torch.device, generator: torch.Generator) -> None:
    x, weight, logits, _ = tensors(case, (torch.float32, torch.float32), device, generator)
    at, geometry = mask(9, [*range(len(x))], 7, device=device), packed(*CASES[case][3:])
    x = x if len(x) > 1 else x[0]
    expected = masked_convolution(x, weight, logits, None, mask=at, geometry=geometry)
    assert expected.is_contiguous()
    last = x.movedim(-3, -1).contiguous().movedim(-1, -3)
    filters = [t.contiguous(memory_format=torch.channels_last) for t in (weight, logits)]
    shared = x.unsqueeze(-1).expand(*x.shape, 2)[..., 0]
    for images, (w, levels) in ((last, (weight, logits)), (x, filters), (last, filters), (shared, (weight, logits))):
        y = masked_convolution(images, w, levels, None, mask=at, geometry=geometry)
        assert torch.equal(y, expected)
        one_in_nhwc = len(at.draw) == 1 and images is not shared
        assert y.is_contiguous(memory_format=torch.channels_last) if one_in_nhwc else y.is_contiguous()


def test_the_result_has_torch_s_memory_format(device, generator, monkeypatch) -> None:
    """A filter of one position or one channel has the strides of both formats; a slice has neither without gaps."""
    monkeypatch.setattr(MODULE, "masked_conv", lambda *args, **options: None)  # the format is that of its output
    at, geometry = mask(9, [3], 7, device=device), packed((1, 1), (1, 1), (1, 1))
    last = {"memory_format": torch.channels_last}
    for kernel, channels in ((1, 4), (3, 1), (1, 1), (3, 4)):
        weight = torch.randn(6, channels, kernel, kernel, generator=generator).to(device)
        image = torch.randn(2, 2 * channels, 5, 5, generator=generator).to(device)
        images = image[:, :channels], image[:, :channels].contiguous(), image.contiguous(**last)[:, :channels]
        for x in (*images, images[0][:, :, :1, :1].contiguous(), images[0][..., :1].contiguous(**last)):
            for w in (weight, weight.contiguous(**last)):
                y = masked_convolution(x, w, weight, None, mask=at, geometry=geometry)
                assert y.stride() == F.conv2d(x, w, padding=1).stride()


def test_a_weight_without_channels_is_left_to_torch(device: torch.device) -> None:
    weight, at = torch.ones(3, 0, 3, 3, device=device), mask(9, [3], 7, device=device)
    x = torch.ones(2, 0, 5, 5, device=device)
    assert masked_convolution(x, weight, weight, None, mask=at, geometry=packed((1, 1), (0, 0), (1, 1))) is None


def test_a_device_that_cannot_read_eight_bits_gets_sixteen(device, generator, monkeypatch) -> None:
    """Before sm_89 the loop would not compile."""
    x, weight, logits, _ = tensors("3 x 3", (torch.float16, torch.float16), device, generator)
    asked: list[torch.dtype] = []
    monkeypatch.setattr(tiles, "readable", lambda weight: asked.append(weight.dtype) or weight.to(torch.bfloat16))
    given = dict(mask=mask(9, [3], 7, device=device), geometry=packed((1, 1), (1, 1), (1, 1)))
    masked_convolution(x[0], weight.to(torch.float8_e4m3fn), logits, None, **given)
    assert asked == [torch.float8_e4m3fn]


@LOOPS
def test_the_mask_is_the_contract_s(device: torch.device, generator: torch.Generator) -> None:
    """Without a bias, the output for images with a single 1, as large as the kernel, is the masked filter's bits."""
    weight, logits = torch.randn(2, 70, 8, 3, 3, generator=generator).to(device)
    images = torch.eye(72, device=device).view(72, 8, 3, 3).expand(2, -1, -1, -1, -1)
    at = mask(2**64 - 77, [5, 2**32 - 1], 7, device=device)
    y = masked_convolution(images, weight, logits, None, mask=at, geometry=packed((1, 1), (0, 0), (1, 1)))
    threshold = reference.threshold_from_logits(logits.flatten(1))
    for i in range(2):
        keep = reference.keep_mask(threshold, mask=at.one(i))
        assert torch.equal(y[i].flatten(1).mT, weight.flatten(1) * keep)


def test_one_input_shared_by_all_draws(device: torch.device, generator: torch.Generator) -> None:
    x, weight, logits, bias = tensors("strided, dilated", (torch.float32, torch.float32), device, generator)
    at, geometry = mask(9, [3, 4, 5], 7, device=device), packed(*CASES["strided, dilated"][3:])
    together = masked_convolution(x[:1].expand_as(x), weight, logits, bias, mask=at, geometry=geometry)
    for i, y in enumerate(together):
        alone = masked_convolution(x[0], weight, logits, bias, mask=at.one(i), geometry=geometry)
        torch.testing.assert_close(y, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "x, weight, geometry, col",
    [
        ((2, 4, 7, 7), (6, 2, 3, 3), packed((1, 1), (0, 0), (1, 1), groups=2), 0),
        ((2, 4, 7, 7), (4, 6, 3, 3), [1, 1, 0, 0, 1, 1, 0, 0, 1, 1], 0),
        ((2, 4, 5, 5, 5), (6, 4, 3, 3, 3), packed((1,) * 3, (0,) * 3, (1,) * 3), 0),
        ((2, 4, 7, 7), (6, 4, 3, 3), packed((1, 1), (0, 0), (1, 1)), 12),
        ((2, 4, 7, 20), (6, 4, 1, 16), packed((1, 1), (0, 0), (1, 1)), 0),
    ],
    ids=["groups", "transposed", "3d", "a shard inside a group of columns", "a large kernel"],
)
def test_what_torch_computes_instead(x, weight, geometry, col, device) -> None:
    at, w = mask(9, 1, 7, col=col, device=device), torch.ones(weight, device=device)
    assert masked_convolution(torch.ones(x, device=device), w, w, None, mask=at, geometry=geometry) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("tokens", [1, 60, 1000])
def test_narrow_tiles_where_wide_ones_spill(
    tokens: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    x = torch.empty(1, dtype=dtype, device=device)
    for spills in (False, True):
        monkeypatch.setattr(MODULE, "SPILLS", spills)
        tile = MODULE.fit(x, tokens, True)
        most = {torch.float16: 64 if spills else 128, torch.float32: 16 if spills else 32}[dtype]
        assert tile.tokens <= most and (tile.tokens == most or tokens <= tile.tokens)


@pytest.mark.parametrize("draws, examples, size, expected", RULE)
def test_rule(draws: int, examples: int, size: int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.empty(1, dtype=torch.bfloat16), torch.empty(256, 256, 3, 3, device="meta")
    shape = [*([draws] if draws > 1 else []), examples, 256, size, size]
    at = mask(9, [*range(draws)], 7)
    monkeypatch.delenv(OVERRIDE)
    monkeypatch.setattr(conv_route, "SPILLS", False)
    assert choose(shape, x, weight, weight, at, formed=False) == expected
    soft = choose(shape, x, weight, weight, at._replace(estimator="concrete"), formed=False)
    assert soft == ("prepass" if expected == "prepass" else "in_register")
    for route in ROUTES:
        monkeypatch.setenv(OVERRIDE, route)
        assert choose(shape, x, weight, weight, at, formed=False) == route
    monkeypatch.setenv(OVERRIDE, "fast")
    with pytest.raises(ValueError, match="'fast'"):
        choose(shape, x, weight, weight, at, formed=False)


def test_cached_thresholds_are_used(device: torch.device, generator: torch.Generator, monkeypatch) -> None:
    monkeypatch.setenv(OVERRIDE, "thresholds")
    monkeypatch.setattr(cache, "enabled", True)
    x, weight, logits, bias = tensors("3 x 3", (torch.float32, torch.float32), device, generator)
    at, geometry = mask(9, 3, 7, device=device), packed(*CASES["3 x 3"][3:])
    first = masked_convolution(x[0], weight, logits, bias, mask=at, geometry=geometry)
    assert cache.find(logits) is not None
    assert torch.equal(masked_convolution(x[0], weight, logits, bias, mask=at, geometry=geometry), first)
    logits.neg_()
    assert not torch.equal(masked_convolution(x[0], weight, logits, bias, mask=at, geometry=geometry), first)
