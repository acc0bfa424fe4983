"""The cases of the suite, by group."""

from __future__ import annotations

from stochprune.pac_bayes.certify import DRAWS

from . import scaling
from .case import PARTS, Case

SQUARES = (1024, 4096)
DTYPES = ("float32", "bfloat16")
MODES = ("joint", "mask-only")


def _linear(rows: int, cols: int, tokens: int) -> dict[str, int]:
    return {"rows": rows, "cols": cols, "tokens": tokens}


def _convolution(examples: int, channels: int, filters: int, size: int) -> dict[str, int]:
    return {"examples": examples, "channels": channels, "filters": filters, "size": size}


OPS = [
    Case("ops", "linear", _linear(size, size, tokens), dtype, mode, PARTS if tokens == 128 else ("step",))
    for size, tokens in ((1024, 128), (4096, 128), (4096, 512))
    for dtype in DTYPES
    for mode in MODES
]
OPS += [
    Case("ops", "linear_nm", {**_linear(size, size, 128), "n": n, "m": 4}, dtype, mode)
    for size, n in ((1024, 1), (1024, 2), (4096, 2))
    for dtype in DTYPES
    for mode in MODES
]
OPS += [Case("ops", "gaussian_linear", _linear(size, size, 128), dtype) for size in SQUARES for dtype in DTYPES]
OPS += [
    Case("ops", "conv2d", _convolution(*sizes), dtype, mode)
    for sizes in ((64, 64, 64, 32), (64, 256, 256, 16), (64, 512, 512, 8))
    for dtype in DTYPES
    for mode in MODES
]
OPS += [Case("ops", "linear_draws", {**_linear(size, size, 16), "draws": 8}) for size in SQUARES]
OPS += [
    Case("ops", "conv2d_draws", {**_convolution(*sizes), "draws": 8})
    for sizes in [
        *((1, 32, 64, 26), (2, 16, 16, 16), (4, 16, 16, 8), (4, 64, 64, 8)),
        *((16, 1, 32, 28), (16, 32, 64, 26), (16, 64, 64, 8)),
    ]
]
OPS += [Case("ops", "mask", {"rows": size, "cols": size}, parts=("forward",)) for size in SQUARES]
OPS += [Case("ops", op, {"weights": 1 << 22}) for op in ("bernoulli_kl", "gaussian_kl")]
LAYERS = [
    Case("layers", "linear", _linear(size, size, tokens), mode=mode)
    for size in (64, 256, 512, 1024)
    for tokens in (32, 128)
    for mode in MODES
]
LAYERS += [
    Case("layers", "embedding", _linear(*sizes), mode=mode)
    for sizes in ((1024, 64, 128), (8192, 256, 128), (8192, 256, 1024))
    for mode in MODES
]
LAYERS += [
    Case("layers", "attention", {"examples": 8, "tokens": tokens, "width": width}, mode=mode)
    for tokens, width in ((32, 64), (128, 256), (128, 512))
    for mode in MODES
]
MODELS = [
    Case("models", op, {"examples": examples}, mode=mode, parts=("step",))
    for op, examples in (("resnet20", 128), ("resnet18", 64), ("vgg16", 128), ("vit", 64))
    for mode in MODES
]
CERTIFICATES = [
    Case("certificates", op, {"draws": draws, "examples": examples}, parts=("forward",))
    for op, examples in (("lenet_300_100", 64), ("pbb_fc", 64), ("pbb_cnn", 16))
    for draws in DRAWS.values()
]
MEMORY = [
    Case("memory", op, {"examples": 16}, mode=mode, parts=("step",))
    for op in ("mlp_1m", "mlp_4m", "mlp_16m")
    for mode in MODES
]
GROUPS: dict[str, list[Case]] = {
    "ops": OPS,
    "layers": LAYERS,
    "models": MODELS,
    "certificates": CERTIFICATES,
    "memory": MEMORY,
    scaling.GROUP: scaling.CASES,
}


def chosen(groups: tuple[str, ...], only: str, small: bool) -> list[Case]:
    """Return the cases of groups, all if there are none, whose names contain ``only``.

    Raises:
        ValueError: there is no such group, or no such case.
    """
    if unknown := [name for name in groups if name not in GROUPS]:
        raise ValueError(f"there is no group {unknown[0]!r}: choose among {', '.join(GROUPS)}")
    cases = [case for name in groups or tuple(GROUPS) for case in GROUPS[name] if only in case.name]
    if not cases:
        raise ValueError(f"no case has a name that contains {only!r}: names are like {OPS[0].name}")
    return list({case.name: case for case in (case.small() if small else case for case in cases)}.values())
