"""Checks shared by the ops: each raises in the user's words and names the value."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stochprune import rng

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OPTIONAL = {
    "spike_and_slab_linear": ("logits", "bias"),
    "spike_and_slab_conv": ("logits", "bias"),
    "local_reparameterised_linear": ("logits", "rho", "bias"),
    "local_reparameterised_conv": ("logits", "rho", "bias"),
}
"""Tensors that may be None, where it is not the bias alone."""
ESTIMATORS = ("straight_through", "concrete", "straight_through_concrete", "expected", "hard_concrete")


def check_estimator(op: str, estimator: str, temperature: float) -> None:
    if estimator not in ESTIMATORS:
        raise ValueError(f"{op}: unknown estimator {estimator!r}; known are: {', '.join(ESTIMATORS)}")
    if isinstance(temperature, bool | Tensor) or not hasattr(temperature, "__float__"):
        raise TypeError(f"{op}: temperature must be a number, got {temperature!r}")
    if not 0 < temperature <= sys.float_info.max:  # an integer may be larger
        raise ValueError(f"{op}: temperature must be a positive number, got {temperature}")


def check_tensor(op: str, name: str, tensor: Any) -> None:
    """Raise unless ``tensor`` is a dense tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be dense, got layout {tensor.layout}; call to_dense()")


def check_floating(op: str, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is None and name in OPTIONAL.get(op, ("bias",)):
            continue
        check_tensor(op, name, tensor)
        assert tensor is not None
        if tensor.dtype not in FLOATING:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING)
            raise TypeError(f"{op}: {name} must be floating, got {tensor.dtype}; convert it to one of {names}")
    check_values(op, **tensors)


def check_values(op: str, **tensors: Tensor | None) -> None:
    """Raise where all tensors lie on the meta device; where some do, the devices differ."""
    if all(tensor is None or tensor.is_meta for tensor in tensors.values()):
        names = ", ".join(name for name, tensor in tensors.items() if tensor is not None)
        raise ValueError(f"{op}: {names}: a meta tensor holds no values; call to_empty() and load them")


def sizes(op: str, name: str, value: int | Sequence[int], dimensions: int) -> list[int]:
    """One integer for each dimension, of a stride, padding or dilation."""
    given: list[Any] = [*value] if isinstance(value, list | tuple) else [value]
    given *= dimensions if len(given) == 1 else 1
    least = int("padding" not in name)
    whole = (isinstance(n, int | torch.SymInt) and not isinstance(n, bool) for n in given)
    if len(given) != dimensions or not all(whole) or not (least <= min(given) and max(given) < 1 << 31):
        raise ValueError(f"{op}: {name} must be {dimensions} integers of at least {least}, got {value!r}")
    return given


def check_kernel(
    op: str, x: Sequence[int], kernel: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> None:
    """Raise where a kernel is larger than the spatial sizes ``x`` with their padding, or is empty."""
    for n, k, p, d in zip(x, kernel, padding, dilation, strict=True):
        if not 1 <= d * (k - 1) + 1 <= n + 2 * p:
            raise ValueError(
                f"{op}: weight's kernel {tuple(kernel)} with dilation {tuple(dilation)} does not fit x's spatial sizes "
                f"{tuple(x)} with padding {tuple(padding)}"
            )


def check_same_device(op: str, **tensors: Tensor | None) -> None:
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        listing = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"{op}: tensors lie on different devices: {listing}; move them to one")


def in_product_dtype(
    op: str, x: Tensor, name: str, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """x and bias in the dtype of a product with ``weight``: that of x, or of autocast.

    Raises:
        TypeError: x is narrower than a float64 weight.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(device))
    elif weight.dtype == torch.float64 and x.dtype != torch.float64:
        raise TypeError(f"{op}: x is {x.dtype} and {name} {weight.dtype}; convert one of them")
    return x, None if bias is None else bias.to(x.dtype)


def spread(op: str, name: str, value: Tensor | float, like: Tensor) -> Tensor:
    """``value`` expanded to the shape of ``like``; a number in float32 at least."""
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not hasattr(value, "__float__"):
            raise TypeError(f"{op}: {name} must be a tensor or a number, got {value!r}")
        if abs(value) > sys.float_info.max and isinstance(value, int):
            raise ValueError(f"{op}: {name} must be a number that a float can hold, got {value}")
        value = torch.tensor(value, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    check_floating(op, **{name: value})
    try:
        return value.expand_as(like)
    except RuntimeError:
        shapes = f"{tuple(value.shape)} does not expand to {tuple(like.shape)}"
        raise ValueError(f"{op}: {name} {shapes}") from None


def explain_nan(result: Tensor, **inputs: Tensor | None) -> None:
    """Raise where a result on the CPU is NaN, naming the input that made it so; deviations are called ``*sigma``."""
    if result.device.type != "cpu" or not bool(result.isnan()):
        return
    for name, tensor in inputs.items():
        if tensor is None:
            continue
        if bool(tensor.isnan().any()):
            raise ValueError(f"{name} contains NaN")
        if name.endswith("sigma") and not bool(((tensor > 0) & tensor.isfinite()).all()):
            low, high = (float(value) for value in tensor.aminmax())
            raise ValueError(f"{name} must be positive and finite, got {high if low > 0 else low}")
    raise ValueError("the divergence is NaN: the inputs are too large")


def named(op: str, forward: Callable[..., Any], *arguments: Any) -> Any:
    """``forward(*arguments)``; what a backend refuses is told in the op's name."""
    try:
        return forward(*arguments)
    except ValueError as error:
        raise ValueError(f"{op}: {error}") from None


class Address(NamedTuple):
    """Which masks an op draws: the first arguments of its operator after the tensors."""

    seed: Tensor  # int64 [1], the bits of a uint64
    draw: Tensor  # int64 [D]
    stream: int


def address(
    op: str,
    seed: int | Tensor,
    draw: int | Tensor,
    stream: int,
    device: torch.device,
    *,
    samples: int | None = None,
    rows: int = 0,
    cols: int = 0,
    row_offset: int = 0,
    col_offset: int = 0,
) -> Address:
    """The checked address on ``device``: one draw, the ``samples`` draws from ``draw`` on, or those given.

    Args: as of :func:`stochprune.rng.check_address`, which raises.
    """
    offsets = {"row_offset": row_offset, "col_offset": col_offset}
    rng.check_address(op, seed=seed, draw=draw, samples=samples, stream=stream, rows=rows, cols=cols, **offsets)
    for name, value in (("seed", seed), ("draw", draw)):
        if isinstance(value, Tensor) and value.device != device:
            raise ValueError(f"{op}: {name} lies on {value.device}, the other tensors on {device}")
    count = 1 if samples is None else int(samples)
    seeds = seed.reshape(1) if isinstance(seed, Tensor) else torch.tensor([rng.as_int64(seed)], device=device)
    if not isinstance(draw, Tensor):
        draws = torch.arange(int(draw), int(draw) + count, device=device)
    elif samples is None:
        draws = draw.reshape(-1)
    else:
        draws = draw.reshape(1) + torch.arange(count, device=device)
    return Address(seeds, draws, int(stream))


def one_draw(op: str, given: Address) -> Address:
    """``given`` where it has one draw, else a ``ValueError``."""
    if len(given.draw) != 1:
        raise ValueError(f"{op}: one draw at a time, got {len(given.draw)} draws")
    return given
