"""Linear layers and convolutions whose weights are Gaussian, or Gaussian under a stochastic mask.

The operators ``stochprune::spike_and_slab`` and its backward form the weights of one draw at a time; nothing but
the inputs is saved for backward, normals and mask are drawn again.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from stochprune import backends
from stochprune.functional._autograd import differentiable_once, masked_product, reshaped
from stochprune.functional._checks import (
    address,
    check_estimator,
    check_floating,
    check_same_device,
    in_product_dtype,
    named,
)
from stochprune.functional._linear import slices
from stochprune.functional._product import LINEAR, convolution, product, product_grads


def _sampled(
    backend: ModuleType,
    mu: Tensor,
    rho: Tensor,
    logits: Tensor | None,
    seed: Tensor,
    draw: Tensor,
    options: tuple[int, str, float],
    dtype: torch.dtype,
) -> Tensor:
    """The weights of one draw (int64 [1]), like ``mu``."""
    slab = (mu.flatten(1), rho.flatten(1), seed, draw, options[0])
    if logits is None:
        return backend.gaussian_weight(*slab, dtype)[0].view(mu.shape)
    wide = backend.gaussian_weight(*slab, mu.dtype)[0]
    return backend.masked_weight(wide, logits.flatten(1), seed, draw, *options, dtype)[0].view(mu.shape)


def _outputs(x: Tensor, weight: Tensor, geometry: Sequence[Any]) -> Tensor:
    """Uninitialised [D, M, N, ...] of x [D, M, ...]."""
    if not geometry[0]:
        return x.new_empty(*x.shape[:2], len(weight))
    stride, padding, dilation, _ = geometry
    sizes = zip(x.shape[3:], weight.shape[2:], stride, padding, dilation, strict=True)
    return x.new_empty(*x.shape[:2], len(weight), *((s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, t, p, d in sizes))


@torch.library.custom_op("stochprune::spike_and_slab", mutates_args=())
def _forward(
    x: Tensor,
    mu: Tensor,
    rho: Tensor,
    logits: Tensor | None,
    bias: Tensor | None,
    seed: Tensor,
    draw: Tensor,
    stream: int,
    estimator: str,
    temperature: float,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    backend = backends.resolve(x, mu, rho, *([] if logits is None else [logits]))
    geometry, options = (stride, padding, dilation, groups), (stream, estimator, temperature)
    y = _outputs(x, mu, geometry)
    for i in range(len(draw)):
        weight = _sampled(backend, mu, rho, logits, seed, draw[i : i + 1], options, x.dtype)
        y[i] = product(x[i], weight, bias, geometry)
    return y


@_forward.register_fake
def _(x: Tensor, mu: Tensor, *rest: Any) -> Tensor:
    return _outputs(x, mu, rest[-4:])


@torch.library.custom_op("stochprune::spike_and_slab_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    mu: Tensor,
    rho: Tensor,
    logits: Tensor | None,
    seed: Tensor,
    draw: Tensor,
    stream: int,
    estimator: str,
    temperature: float,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    need_x: bool,
    need_mu: bool,
    need_rho: bool,
    need_logits: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    backend = backends.resolve(x, mu, rho, *([] if logits is None else [logits]))
    geometry, options = (stride, padding, dilation, groups), (stream, estimator, temperature)
    dx = x.new_empty(x.shape if need_x else 0)
    needs = (need_mu, need_rho, need_logits and logits is not None)
    sums: list[Tensor | None] = [None, None, None]
    for i in range(len(draw)):
        one = draw[i : i + 1]
        # Without need of dx only the shape of the weights is looked at.
        weight = _sampled(backend, mu, rho, logits, seed, one, options, x.dtype) if need_x else mu.to(x.dtype)
        dx_i, outer = product_grads(grad[i], x[i], weight, geometry, need_x, any(needs))
        if dx_i is not None:
            dx[i] = dx_i
        if outer is None:
            continue
        dweight, dlogits = outer.to(mu.dtype).flatten(1), None  # [N, K]: dL/d(weight), through the mask if there is one
        if logits is not None:
            slab = backend.gaussian_weight(mu.flatten(1), rho.flatten(1), seed, one, stream, mu.dtype)[0]
            given = (dweight[None], slab, logits.flatten(1), seed, one, *options)
            dweight, dlogits = backend.weight_grad(*given, need_mu or need_rho, needs[2])
        drho = backend.gaussian_grad(dweight[None], rho.flatten(1), seed, one, stream) if need_rho else None
        parts = (dweight if need_mu else None, drho, dlogits if needs[2] else None)
        sums = [p if total is None or p is None else total + p for total, p in zip(sums, parts, strict=True)]
    dmu, drho, dlogit = (mu.new_empty(0) if total is None else total.view(mu.shape) for total in sums)
    return dx, dmu, drho, dlogit


@_backward.register_fake
def _(grad: Tensor, x: Tensor, mu: Tensor, rho: Tensor, logits: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    inputs, needs = (x, mu, rho, mu if logits is None else logits), (*rest[-4:-1], rest[-1] and logits is not None)
    dx, dmu, drho, dlogits = (t.new_empty(t.shape if need else 0) for t, need in zip(inputs, needs, strict=True))
    return dx, dmu, drho, dlogits


masked_product(_forward, _backward, trained=4)
differentiable_once(
    _backward, "spike and slab layers are differentiable once: backward has no derivative (double backward)"
)


def spike_and_slab_linear(
    x: Tensor,
    mu: Tensor,
    rho: Tensor,
    logits: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    seed: int | Tensor,
    draw: int | Tensor,
    stream: int,
    estimator: str = "straight_through",
    temperature: float = 1.0,
    samples: int | None = None,
) -> Tensor:
    """A linear layer with random weights: ``x (z (mu + softplus(rho) e))^T + bias``, e standard normal.

    With logits each weight is N(mu, softplus(rho)^2) with probability sigmoid(logit), else 0: the spike and slab. z is
    the stochastic mask of :func:`stochprune.functional.masked_linear` at the same address, e the normal of
    :func:`stochprune.rng.normal`, independent of it. Without logits z = 1: plain Gaussian weights (Blundell et al.
    2015).

    With G the gradient of the weight and s = mu + softplus(rho) e: dmu = G z, drho = G z e sigmoid(rho), the
    reparameterised gradients, unbiased for the expected loss over the normals and, with a hard mask, over masks; and
    dlogits = G s slope, with the estimator's slope (listed at masked_linear, which says what each is unbiased for).

    Args:
        x: [..., K], floating. With a vector of D draws: [D, ..., K], slice d under ``draw[d]``.
        mu, rho: [N, K], floating; the standard deviation is softplus(rho).
        logits: [N, K], floating, or None.
        bias: [N] or None.
        seed, draw, stream, estimator, temperature, samples: as for masked_linear.

    Returns:
        [..., N] in x's dtype; [S, ..., N] with ``samples``; [D, ..., N] with a vector of draws.

    Raises:
        TypeError: a tensor that is not floating.
        ValueError: shapes that do not fit, devices that differ, NaN logits (on the CPU), an unknown estimator, an
            integer out of range.
        RuntimeError: on differentiating twice.
    """
    op = "spike_and_slab_linear"
    check_estimator(op, estimator, temperature)
    given = slices(op, x, {"mu": mu, "rho": rho, "logits": logits}, bias, seed, draw, stream, samples)
    options = (*given.address, estimator, temperature, *LINEAR)
    return given.restore(named(op, _forward, given.x, mu, rho, logits, given.bias, *options))


def spike_and_slab_conv(
    x: Tensor,
    mu: Tensor,
    rho: Tensor,
    logits: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    seed: int | Tensor,
    draw: int | Tensor,
    stream: int,
    estimator: str = "straight_through",
    temperature: float = 1.0,
    samples: int | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """A convolution of one, two or three dimensions with random weights, as :func:`spike_and_slab_linear`, which see.

    Normals and masks are those of the matrix ``mu.flatten(1)``.

    Args:
        x: [M, C, *S], floating. With a vector of D draws: [D, M, C, *S], slice d under ``draw[d]``.
        mu, rho, logits: [N, C / groups, *kernel]; logits may be None.
        stride, padding, dilation, groups: as in torch's convolution.

    Returns:
        [M, N, *T]; [S, M, N, *T] with ``samples``; [D, M, N, *T] with a vector of draws.

    Raises:
        TypeError, ValueError, RuntimeError: as for the linear layer.
    """
    op = "spike_and_slab_conv"
    check_estimator(op, estimator, temperature)
    check_floating(op, x=x, mu=mu, rho=rho, logits=logits, bias=bias)
    check_same_device(op, x=x, mu=mu, rho=rho, logits=logits, bias=bias)
    for name, tensor in (("rho", rho), ("logits", logits)):
        if tensor is not None and tensor.shape != mu.shape:
            raise ValueError(f"{op}: {name} {tuple(tensor.shape)} and mu {tuple(mu.shape)} differ in shape")
    x, bias = in_product_dtype(op, x, "mu", mu, bias)
    size = {"rows": mu.shape[0], "cols": mu.shape[1:].numel()}
    at = address(op, seed, draw, stream, x.device, samples=samples, **size)
    draws = len(at.draw)
    apart = samples is None and draws != 1  # each draw has an x of its own
    if apart and (x.dim() != mu.dim() + 1 or x.shape[0] != draws):
        raise ValueError(f"{op}: x {tuple(x.shape)} has no leading dimension of {draws}, one for each draw")
    many = x if apart else x.expand(draws, *x.shape)  # [D, M, C, *S]
    geometry = convolution(op, many[0], mu, stride, padding, dilation, groups)
    if bias is not None and bias.shape != mu.shape[:1]:
        raise ValueError(f"{op}: bias {tuple(bias.shape)} does not fit mu {tuple(mu.shape)}")
    options = (*at, estimator, temperature, *geometry)
    y: Tensor = named(op, _forward, many, mu, rho, logits, bias, *options)
    return y if samples is not None or apart else reshaped(y, y.shape[1:])
