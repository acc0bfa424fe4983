"""Local reparameterisation (Kingma, Salimans and Welling 2015): noise on pre-activations instead of masks on weights.

A sum of many independent weights is nearly Gaussian. Its mean and its variance are products with the weights' moments,
and each pre-activation of each example is sampled as ``y ~ N(mean, variance)``. The inputs and the standard deviations
are saved for backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from stochprune import backends
from stochprune.address import Logits, Mask
from stochprune.functional import _product
from stochprune.functional._address import Address
from stochprune.functional._geometry import Convolution, Geometry, Sizes
from stochprune.functional._inputs import convolution, linear
from stochprune.functional._op import ADDRESS, Op, reshaped


def _matrices(weight: Tensor, logits: Tensor | None, rho: Tensor | None) -> tuple[Tensor, Logits | None, Tensor | None]:
    levels = None if logits is None else Logits(logits.flatten(1))
    return weight.flatten(1), levels, None if rho is None else rho.flatten(1)


def _moments(x: Tensor, weight: Tensor, logits: Tensor | None, rho: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each weight, in the shape of ``weight`` and the dtype of x, in one pass."""
    matrices = _matrices(weight, logits, rho)
    backend = backends.resolve(x, *(t for t in matrices if t is not None))
    mean, variance = backend.moments(*matrices, x.dtype)
    return mean.view(weight.shape), variance.view(weight.shape)


def _noise(y: Tensor, mask: Mask) -> Tensor:
    """Return the normals [D, M, ...] of pre-activations y [M, ...]; the row is the example, the column the position."""
    normals = backends.resolve(y).normal(len(y), y[:1].numel(), mask=mask)
    return normals.view(len(mask.draw), *y.shape).to(y.dtype)


def _forward(
    x: Tensor,
    weight: Tensor,
    logits: Tensor | None,
    rho: Tensor | None,
    bias: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    """Return y [D, M, N, ...] and its standard deviation [M, N, ...] of x [M, K, ...]."""
    mask, geometry = Mask(*rest[:7]), rest[7]
    mean, variance = _moments(x, weight, logits, rho)
    y = _product.multiply(x, mean, bias, geometry)
    # Clamped, because convolutions by transforms (Winograd, Fourier) can round to slightly below zero.
    deviation = _product.multiply(x.square(), variance, None, geometry).clamp_min(0).sqrt()
    return torch.addcmul(y, deviation, _noise(y, mask)), deviation


def _fake(x: Tensor, weight: Tensor, logits: Any, rho: Any, bias: Any, seed: Tensor, draw: Tensor, *rest: Any) -> Any:
    y = _product.multiply(x, weight.to(x.dtype).contiguous(), None, rest[-1])  # the moments are contiguous
    return torch.addcmul(y, y, y.new_empty(draw.shape[0], *y.shape)), torch.empty_like(y)


def _backward(
    grad: Tensor,
    deviation: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Tensor | None,
    rho: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mask, geometry, needs = Mask(*rest[:7]), rest[7], rest[8:]
    mean, variance = _moments(x, weight, logits, rho)
    noise = _noise(deviation, mask)
    # d sqrt(v) / dv is undefined at v = 0, where the noise has no effect (a zero input, or certain weights).
    dvariance = torch.where(deviation > 0, (grad * noise).sum(0) / (2 * deviation), 0)
    dx, dmean = _product.differentiate(grad.sum(0), x, mean, geometry, needs)
    dsquare, dspread = _product.differentiate(dvariance, x.square(), variance, geometry, needs)
    grads: Sequence[Tensor | None] = []
    if dmean is not None and dspread is not None:
        matrices = _matrices(weight, logits, rho)
        backend = backends.resolve(x, dmean, dspread, *(t for t in matrices if t is not None))
        grads = backend.moments_grad(dmean.flatten(1), dspread.flatten(1), *matrices)
    dweight, dlogits, drho = _product.operator_grads((weight, logits, rho), grads, x)
    return x.new_empty(0) if dx is None or dsquare is None else dx + 2 * x * dsquare, dweight, dlogits, drho


def _fake_backward(grad: Tensor, deviation: Tensor, *args: Any) -> Any:
    x, *weights = args[:4]
    geometry, need_x, need_weights = args[-3:]
    dx = x.new_empty(0)
    if need_x:
        dx, _ = _product.differentiate(grad.sum(0), x, weights[0].to(x.dtype).contiguous(), geometry, (True, False))
        dx = dx + x * dx
    grads = [None if t is None or not need_weights else t.new_empty(t.shape) for t in weights]
    return dx, *_product.operator_grads(weights, grads, x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, logits, rho, bias, seed, draw, *ctx.options = inputs
    ctx.save_for_backward(output[1], x, weight, logits, rho, seed, draw)
    ctx.mark_non_differentiable(output[1])
    ctx.has_bias = bias is not None
    ctx.set_materialize_grads(False)


def _grads(ctx: Any, backward: Callable[..., Any], grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    need = ctx.needs_input_grad
    grads: tuple[Tensor | None, ...] = (None,) * 4
    dbias = None
    if grad is not None:
        grads = backward(grad, *ctx.saved_tensors, *ctx.options, need[0], any(need[1:4]))
        grads = tuple(g if needed else None for g, needed in zip(grads, need, strict=False))
        if ctx.has_bias and need[4]:
            dbias = grad.sum((0, 1, *range(3, grad.dim())))
    return *grads, dbias, *([None] * (2 + len(ctx.options)))


_GIVEN = "Tensor x, Tensor weight, Tensor? logits, Tensor? rho"
_SCHEMAS = (
    f"({_GIVEN}, Tensor? bias, {ADDRESS}, SymInt[] geometry) -> (Tensor, Tensor)",
    f"(Tensor grad, Tensor deviation, {_GIVEN}, {ADDRESS}, SymInt[] geometry, bool need_x, bool need_weights)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
_FAKES = (_fake, _fake_backward)
_local = Op("local_reparameterisation", _SCHEMAS, _forward, _backward, fakes=_FAKES, save=_save, grads=_grads)


def _one_draw(op: str, at: Address) -> Address:
    if isinstance(at.draw, Tensor) and at.draw.numel() != 1:
        raise ValueError(f"{op}: draw must be one draw, got {at.draw.numel()} draws; samples takes several")
    return at


def _sample(
    op: str,
    x: Tensor,
    weights: dict[str, Tensor | None],
    bias: Tensor | None,
    at: Address,
    geometry: Sequence[int],
    columns: int,
) -> Tensor:
    """Return y [M, N, ...], or [S, M, N, ...] with samples, of checked x [M, K, ...]; ``columns`` of each example."""
    if weights["logits"] is None and weights["rho"] is None:
        raise ValueError(f"{op}: logits and rho are None, so nothing is random; give one or both")
    mask = at.mask(op, x.device, len(x), columns)
    y: Tensor = _local(op, x, *weights.values(), bias, *mask, geometry)[0]
    return y if at.samples is not None else reshaped(y, y.shape[1:])


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
    col_offset: int = 0,
    samples: int | None = None,
) -> Tensor:
    """Apply a linear layer whose pre-activations are sampled, each from a normal with its mean and variance.

    The weights are those of :func:`stochprune.functional.spike_and_slab_linear`: each is kept with probability
    q = sigmoid(logits) (1 without logits), and is then N(weight, sigma^2) with sigma = softplus(rho) (0 without rho)::

        y = mean + sqrt(variance) e,  mean = x (q w)^T + bias,  variance = x^2 (q (1 - q) w^2 + q sigma^2)^T

    Mean and variance are exact. The distribution is exact for Gaussian weights; for masks it is the limit of many
    inputs. The noise of different examples is independent, while one mask would be shared by them. The gradients are
    exact for the sampled y.

    e is the contract's normal (:func:`stochprune.rng.normal`). Its row is ``row_offset`` plus the number of the
    example, counted over the leading dimensions of x; its column is ``col_offset`` plus the output feature.

    Args:
        x: [..., K], floating.
        weight, logits, rho: [N, K], floating; one of logits and rho may be None.
        bias: [N] or None.
        seed, draw, stream: the address, with one draw.
        row_offset: the number of the first example, if several processes share a batch.
        col_offset: the number of the first output feature, if several processes share a layer's outputs.
        samples: S samples for the same x, with the draws draw .. draw + S - 1; mean and variance are computed once.

    Returns:
        [..., N] in x's dtype; [S, ..., N] with ``samples``.

    Raises:
        TypeError: a tensor that is not floating, or x narrower than a float64 weight.
        ValueError: shapes that do not fit, devices that differ, neither logits nor rho, an integer out of range.
        RuntimeError: if it is differentiated twice.
    """
    op = "local_reparameterised_linear"
    weights = {"weight": weight, "logits": logits, "rho": rho}
    at = _one_draw(op, Address(seed, draw, stream, samples=samples, row_offset=row_offset, col_offset=col_offset))
    given = linear(op, x, weights, bias, at.first())
    y = _sample(op, _product.rows(given.x), weights, given.bias, at, _product.LINEAR, len(weight))
    return reshaped(y, (*y.shape[:-2], *x.shape[:-1], y.shape[-1]))


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
    col_offset: int = 0,
    samples: int | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """Apply a convolution of one, two or three dimensions under local reparameterisation.

    It follows :func:`local_reparameterised_linear`. Pre-activations that share weights are sampled independently, as is
    usual (Shridhar et al. 2019): each has its exact mean and variance, but their covariance is lost. The normal's row
    is the example, and its column is the row-major position in [N, *T]. So a shard of the filters that starts at filter
    n has the ``col_offset`` n times the number of positions.

    Args:
        x: [C, *S] or [M, C, *S], floating.
        weight, logits, rho: [N, C / groups, *kernel].
        stride, padding, dilation, groups: as in torch's convolution, with padding ``"same"`` and ``"valid"``.

    Returns:
        [N, *T] or [M, N, *T]; [S, ...] of these with ``samples``.

    Raises:
        TypeError, ValueError, RuntimeError: as for the linear layer.
    """
    op = "local_reparameterised_conv"
    weights = {"weight": weight, "logits": logits, "rho": rho}
    at = _one_draw(op, Address(seed, draw, stream, samples=samples, row_offset=row_offset, col_offset=col_offset))
    form = Convolution(stride, padding, dilation, groups)
    given, geometry = convolution(op, x, weights, bias, at.first(), form)
    columns = len(weight) * Geometry.of(geometry).positions(given.x.shape[2:], weight.shape[2:])
    y = _sample(op, given.x, weights, given.bias, at, geometry, columns)
    single = given.leading is not None  # x is one example without a batch dimension
    return reshaped(y, (*y.shape[: y.dim() - weight.dim()], *y.shape[y.dim() - weight.dim() + single :]))
