"""Local reparameterisation (Kingma, Salimans and Welling 2015): noise on pre-activations in place of masks on weights.

A sum of many independent weights is nearly Gaussian, so its mean and its variance, each a product with the weights'
moments, say enough: ``y ~ N(mean, variance)``, one normal for each pre-activation of each example. The operators
``stochprune::local_reparameterisation`` and its backward save the inputs and the variances.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stochprune import backends
from stochprune.functional._autograd import differentiable_once, reshaped
from stochprune.functional._checks import address, check_floating, check_same_device, in_product_dtype, named, one_draw
from stochprune.functional._product import LINEAR, convolution, product, product_grads


def _moments(x: Tensor, weight: Tensor, logits: Tensor | None, rho: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance of every weight, like ``weight``, in the dtype of x: one pass over the weights."""
    flat = [None if t is None else t.flatten(1) for t in (weight, logits, rho)]
    backend = backends.resolve(x, *(t for t in flat if t is not None))
    mean, variance = backend.moments(*flat, x.dtype)
    return mean.view(weight.shape), variance.view(weight.shape)


def _noise(y: Tensor, seed: Tensor, draw: Tensor, stream: int, row_offset: int) -> Tensor:
    """The normals [D, M, ...] of the pre-activations y [M, ...]: row the example, column the flattened position."""
    normals = backends.resolve(y).normal(len(y), y[:1].numel(), seed, draw, stream, row_offset)
    return normals.view(len(draw), *y.shape).to(y.dtype)


@torch.library.custom_op("stochprune::local_reparameterisation", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    logits: Tensor | None,
    rho: Tensor | None,
    bias: Tensor | None,
    seed: Tensor,
    draw: Tensor,
    stream: int,
    row_offset: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    geometry = (stride, padding, dilation, groups)
    mean, variance = _moments(x, weight, logits, rho)
    y = product(x, mean, bias, geometry)
    # Clamped: convolutions through transforms (Winograd, Fourier) may fall short of zero by a rounding.
    deviation = product(x.square(), variance, None, geometry).clamp_min(0).sqrt()
    return torch.addcmul(y, deviation, _noise(y, seed, draw, stream, row_offset)), deviation


@_forward.register_fake
def _(x: Tensor, weight: Tensor, logits: Any, rho: Any, bias: Any, seed: Tensor, draw: Tensor, *rest: Any) -> Any:
    y = product(x, weight.to(x.dtype).contiguous(), None, rest[2:])  # the moments are contiguous, like the normals
    return torch.addcmul(y, y, y.new_empty(draw.shape[0], *y.shape)), torch.empty_like(y)


@torch.library.custom_op("stochprune::local_reparameterisation_backward", mutates_args=())
def _backward(
    grad: Tensor,
    deviation: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Tensor | None,
    rho: Tensor | None,
    seed: Tensor,
    draw: Tensor,
    stream: int,
    row_offset: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    need_x: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    geometry = (stride, padding, dilation, groups)
    mean, variance = _moments(x, weight, logits, rho)
    noise = _noise(deviation, seed, draw, stream, row_offset)
    # d sqrt(v) / dv has no value at v = 0, where the noise has no part: an input of zeros, or sure weights.
    dvariance = torch.where(deviation > 0, (grad * noise).sum(0) / (2 * deviation), 0)
    dx, dmean = product_grads(grad.sum(0), x, mean, geometry, need_x, need_weights)
    dsquare, dspread = product_grads(dvariance, x.square(), variance, geometry, need_x, need_weights)
    found = [x.new_empty(0) for _ in range(4)]  # an operator may not return one tensor twice
    if dx is not None and dsquare is not None:
        found[0] = dx + 2 * x * dsquare
    if dmean is None or dspread is None:
        return found[0], found[1], found[2], found[3]
    flat = [None if t is None else t.flatten(1) for t in (dmean, dspread, weight, logits, rho)]
    backend = backends.resolve(x, *(t for t in flat if t is not None))
    grads = backend.moments_grad(*flat)
    for i, g in enumerate(grads):
        found[i + 1] = found[i + 1] if g is None else g.reshape(weight.shape).contiguous()
    return found[0], found[1], found[2], found[3]


@_backward.register_fake
def _(grad: Tensor, deviation: Tensor, x: Tensor, weight: Tensor, logits: Any, rho: Any, *rest: Any) -> Any:
    *geometry, need_x, need_weights = rest[4:]
    found = [x.new_empty(0)]
    if need_x:
        dx, _ = product_grads(grad.sum(0), x, weight.to(x.dtype).contiguous(), geometry, True, False)
        assert dx is not None
        found = [dx + x * dx]
    for t in (weight, logits, rho):
        found.append(t.new_empty(t.shape) if need_weights and t is not None else x.new_empty(0))
    return tuple(found)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, logits, rho, bias, seed, draw, *ctx.options = inputs
    ctx.save_for_backward(output[1], x, weight, logits, rho, seed, draw)
    ctx.mark_non_differentiable(output[1])
    ctx.has_bias = bias is not None
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    need = ctx.needs_input_grad
    grads: tuple[Tensor | None, ...] = (None,) * 4
    dbias = None
    if grad is not None:
        grads = _backward(grad, *ctx.saved_tensors, *ctx.options, need[0], any(need[1:4]))
        grads = tuple(g if needed else None for g, needed in zip(grads, need, strict=False))
        if ctx.has_bias and need[4]:
            dbias = grad.sum((0, 1, *range(3, grad.dim())))
    return *grads, dbias, *([None] * (2 + len(ctx.options)))


_forward.register_autograd(_differentiate, setup_context=_save)
differentiable_once(
    _backward, "local reparameterisation is differentiable once: backward has no derivative (double backward)"
)


def _call(
    op: str,
    x: Tensor,
    weight: Tensor,
    logits: Tensor | None,
    rho: Tensor | None,
    bias: Tensor | None,
    seed: int | Tensor,
    draw: int | Tensor,
    stream: int,
    row_offset: int,
    samples: int | None,
    *geometry: Any,
) -> Tensor:
    check_floating(op, x=x, weight=weight, logits=logits, rho=rho, bias=bias)
    check_same_device(op, x=x, weight=weight, logits=logits, rho=rho, bias=bias)
    if logits is None and rho is None:
        raise ValueError(f"{op}: nothing is random: give logits, rho or both")
    for name, tensor in (("logits", logits), ("rho", rho)):
        if tensor is not None and tensor.shape != weight.shape:
            raise ValueError(f"{op}: {name} {tuple(tensor.shape)} and weight {tuple(weight.shape)} differ in shape")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{op}: bias {tuple(bias.shape)} does not fit weight {tuple(weight.shape)}")
    at = address(op, seed, draw, stream, x.device, samples=samples, rows=x.shape[0], row_offset=row_offset)
    at = one_draw(op, at) if samples is None else at
    x, bias = in_product_dtype(op, x, "weight", weight, bias)
    y: Tensor = named(op, _forward, x, weight, logits, rho, bias, *at, int(row_offset), *geometry)[0]
    return y if samples is not None else reshaped(y, y.shape[1:])


def local_reparameterised_linear(
    x: Tensor,
    weight: Tensor,
    logits: Tensor | None = None,
    rho: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    seed: int | Tensor,
    draw: int | Tensor,
    stream: int,
    row_offset: int = 0,
    samples: int | None = None,
) -> Tensor:
    """A linear layer whose pre-activations are drawn, each from the normal of its mean and variance.

    The weights are those of :func:`stochprune.functional.spike_and_slab_linear`: kept with q = sigmoid(logits) (1
    without logits), then N(weight, sigma^2) with sigma = softplus(rho) (0 without rho). So::

        y = mean + sqrt(variance) e,  mean = x (q w)^T + bias,  variance = x^2 (q (1 - q) w^2 + q sigma^2)^T

    Mean and variance are exact; for Gaussian weights so is the distribution, for masks it is the limit of many inputs,
    and examples are independent where one mask would couple them. The gradients are exact for the y that is drawn.

    e is the contract's normal (:func:`stochprune.rng.normal`) at row ``row_offset`` plus the example's number, counted
    over the leading dimensions of x, and column the output feature.

    Args:
        x: [..., K], floating.
        weight, logits, rho: [N, K], floating; logits or rho may be None, not both.
        bias: [N] or None.
        seed, draw, stream: the address; one draw.
        row_offset: number of the first example, where several processes share a batch.
        samples: S draws of the same x, from ``draw`` on; mean and variance are formed once.

    Returns:
        [..., N] in x's dtype; [S, ..., N] with ``samples``.

    Raises:
        TypeError: a tensor that is not floating, or x narrower than a float64 weight.
        ValueError: shapes that do not fit, devices that differ, neither logits nor rho, an integer out of range.
        RuntimeError: on differentiating twice.
    """
    op = "local_reparameterised_linear"
    check_floating(op, x=x, weight=weight)
    if x.dim() < 1 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"{op}: x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit")
    flat = x.reshape(-1, x.shape[-1]) if x.shape[-1] else x.new_empty(x.shape[:-1].numel(), 0)
    y = _call(op, flat, weight, logits, rho, bias, seed, draw, stream, row_offset, samples, *LINEAR)
    return reshaped(y, (*y.shape[: y.dim() - 2], *x.shape[:-1], weight.shape[0]))


def local_reparameterised_conv(
    x: Tensor,
    weight: Tensor,
    logits: Tensor | None = None,
    rho: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    seed: int | Tensor,
    draw: int | Tensor,
    stream: int,
    row_offset: int = 0,
    samples: int | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """A convolution of one, two or three dimensions under local reparameterisation.

    As :func:`local_reparameterised_linear`, which see. Pre-activations that share weights are drawn independently, as
    is usual (Shridhar et al. 2019): each has its exact mean and variance, their covariance is lost. The normal's row is
    the example, its column the row-major position in [N, *T].

    Args:
        x: [M, C, *S], floating.
        weight, logits, rho: [N, C / groups, *kernel].
        stride, padding, dilation, groups: as in torch's convolution.

    Returns:
        [M, N, *T]; [S, M, N, *T] with ``samples``.

    Raises:
        TypeError, ValueError, RuntimeError: as for the linear layer.
    """
    op = "local_reparameterised_conv"
    check_floating(op, x=x, weight=weight)
    geometry = convolution(op, x, weight, stride, padding, dilation, groups)
    return _call(op, x, weight, logits, rho, bias, seed, draw, stream, row_offset, samples, *geometry)
