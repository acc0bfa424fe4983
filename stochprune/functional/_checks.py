"""Checks shared by the ops: each raises in the user's words and names the value."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stochprune import rng

ESTIMATORS = ("straight_through", "concrete", "straight_through_concrete", "expected", "hard_concrete")


def check_estimator(op: str, estimator: str, temperature: float) -> None:
    if estimator not in ESTIMATORS:
        raise ValueError(f"{op}: unknown estimator '{estimator}'; known are: {', '.join(ESTIMATORS)}")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"{op}: temperature must be a positive number, got {temperature}")


def check_floating(op: str, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{op}: {name} must be floating, got {tensor.dtype}")


def check_same_device(op: str, **tensors: Tensor | None) -> None:
    places = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(places.values())) > 1:
        listing = ", ".join(f"{name} on {device}" for name, device in places.items())
        raise ValueError(f"{op}: tensors lie on different devices: {listing}")


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
        value = torch.tensor(value, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    check_floating(op, **{name: value})
    try:
        return value.expand_as(like)
    except RuntimeError:
        shapes = f"{tuple(value.shape)} does not expand to {tuple(like.shape)}"
        raise ValueError(f"{op}: {name} {shapes}") from None


def explain_nan(op: str, result: Tensor, **inputs: Tensor | None) -> None:
    """Raise where a result on the CPU is NaN, naming the input that made it so; deviations are called ``*sigma``."""
    if result.device.type != "cpu" or not bool(result.isnan()):
        return
    for name, tensor in inputs.items():
        if tensor is None:
            continue
        if bool(tensor.isnan().any()):
            raise ValueError(f"{op}: {name} contains NaN")
        if name.endswith("sigma") and not bool(((tensor > 0) & tensor.isfinite()).all()):
            low, high = (float(value) for value in tensor.aminmax())
            raise ValueError(f"{op}: {name} must be positive and finite, got {high if low > 0 else low}")
    raise ValueError(f"{op}: the inputs are too large: their divergence is no number")


def seed_tensor(op: str, seed: int | Tensor, device: torch.device) -> Tensor:
    """int64 tensor [1] with the bits of the uint64 seed, on ``device``."""
    if isinstance(seed, Tensor):
        return _integers(op, "seed", seed, device).reshape(1)
    rng.check_address(seed=seed)
    return torch.tensor([rng.as_int64(seed)], device=device)


def draw_tensor(op: str, draw: int | Tensor, samples: int | None, device: torch.device) -> Tensor:
    """int64 tensor [D] of the draws, on ``device``: one, the ``samples`` draws from ``draw`` on, or those given."""
    if samples is not None and samples < 1:
        raise ValueError(f"{op}: samples must be at least 1, got {samples}")
    if not isinstance(draw, Tensor):
        rng.check_address(draw=draw)
        rng.check_address(draw=draw + (samples or 1) - 1)
        return torch.arange(draw, draw + (samples or 1), device=device)
    first = _integers(op, "draw", draw, device)
    if first.dim() > 1:
        raise ValueError(f"{op}: draw must be a number or a vector, got shape {tuple(first.shape)}")
    if samples is None:
        return first.reshape(-1)
    if first.numel() != 1:
        raise ValueError(f"{op}: samples={samples} counts on from one draw, got {first.numel()} draws")
    return first.reshape(1) + torch.arange(samples, device=device)


def _integers(op: str, name: str, value: Tensor, device: torch.device) -> Tensor:
    if value.dtype != torch.int64:
        raise TypeError(f"{op}: {name} must be an int64 tensor, got {value.dtype}")
    if value.device != device:
        raise ValueError(f"{op}: {name} lies on {value.device}, the other tensors on {device}")
    return value
