"""Linear layers and convolutions whose weights are Gaussian, or Gaussian under a stochastic mask.

Only the inputs are saved for backward, which samples normals and mask again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stochprune import backends
from stochprune.address import Logits, Mask
from stochprune.functional import _product
from stochprune.functional._address import Address
from stochprune.functional._geometry import Convolution, Sizes
from stochprune.functional._inputs import convolution, linear
from stochprune.functional._op import ADDRESS, product


class _RandomWeights:
    """The weights [d, *mu.shape] of d draws, in the dtype of x, and the gradients of their parameters."""

    def __init__(self, x: Tensor, mu: Tensor, rho: Tensor, logits: Tensor | None, mask: Mask) -> None:
        self.backend = backends.resolve(x, mu, rho, *([] if logits is None else [logits]))
        self.shape, self.dtype, self.mask = mu.shape, x.dtype, mask
        self.mu, self.rho = mu.flatten(1), rho.flatten(1)
        self.logits = None if logits is None else Logits(logits.flatten(1))

    def form(self, part: slice) -> Tensor:
        mask = self.mask.part(part)
        if self.logits is None:
            slabs = self.backend.gaussian_weight(self.mu, self.rho, mask=mask, dtype=self.dtype)
            return slabs.view(-1, *self.shape)
        if len(mask.draw) == 1:
            return self._masked(mask, self.logits).view(1, *self.shape)
        # Cloned, because masked weights are in scratch memory.
        each = [self._masked(mask.one(i), self.logits).clone() for i in range(len(mask.draw))]
        return torch.cat(each).view(-1, *self.shape)

    def _masked(self, one: Mask, logits: Logits) -> Tensor:
        return self.backend.masked_weight(self._slab(one), logits, mask=one, dtype=self.dtype)

    def _slab(self, one: Mask) -> Tensor:
        return self.backend.gaussian_weight(self.mu, self.rho, mask=one, dtype=self.mu.dtype)[0]

    def grads(self, part: slice, grad: Tensor, needs: tuple[bool, bool, bool]) -> list[Tensor | None]:
        """Return dmu, drho and dlogits [N, K] of grad [d, *mu.shape], summed over the draws; None where not needed."""
        need_mu, need_rho, need_logits = needs
        sums: list[Tensor | None] = [None] * 3
        for i, g in enumerate(grad.to(self.mu.dtype)):
            one, dweight, dlogits = self.mask.part(part).one(i), g.reshape(1, *self.mu.shape), None
            if self.logits is not None:
                wanted = (need_mu or need_rho, need_logits)
                slab = self._slab(one)
                dslab, dlogits = self.backend.weight_grad(dweight, slab, self.logits, mask=one, needs=wanted)
                dweight = dweight if dslab is None else dslab[None]
            drho = self.backend.gaussian_grad(dweight, self.rho, mask=one) if need_rho else None
            found = (dweight[0] if need_mu else None, drho, dlogits if need_logits else None)
            sums = [_product.accumulated(*pair) for pair in zip(sums, found, strict=True)]
        return sums


def _forward(x: Tensor, mu: Tensor, rho: Tensor, logits: Tensor | None, bias: Tensor | None, *rest: Any) -> Tensor:
    mask, geometry = Mask(*rest[:7]), rest[7]
    weights = _RandomWeights(x, mu, rho, logits, mask)
    return _product.forward(x, mu, bias, weights.form, geometry, len(mask.draw))


def _fake(x: Tensor, mu: Tensor, *rest: Any) -> Tensor:
    return _product.fake_forward(x, x.new_empty(mu.shape), rest[-1], len(rest[4]))


def _backward(
    grad: Tensor, x: Tensor, mu: Tensor, rho: Tensor, logits: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mask, geometry = Mask(*rest[:7]), rest[7]
    need_x, need_mu, need_rho, need_logits = rest[8:]
    weights = _RandomWeights(x, mu, rho, logits, mask)
    needs = (need_mu, need_rho, need_logits and logits is not None)

    def parameter_grads(part: slice, g: Tensor) -> Sequence[Tensor | None]:
        return weights.grads(part, g, needs)

    dx, grads = _product.backward(
        grad, x, mu, weights.form, parameter_grads, geometry, len(mask.draw), (need_x, any(needs))
    )
    dmu, drho, dlogits = _product.operator_grads((mu, rho, logits), grads, x)
    return dx, dmu, drho, dlogits


_spike_and_slab = product(
    "spike_and_slab", ("x", "mu", "rho", "logits?"), f"{ADDRESS}, SymInt[] geometry", _forward, _backward, _fake
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
    row_offset: int = 0,
    col_offset: int = 0,
) -> Tensor:
    """Apply a linear layer with random weights: ``x (z (mu + softplus(rho) e))^T + bias``, e standard normal.

    With logits, each weight is N(mu, softplus(rho)^2) with probability sigmoid(logit), else 0: the spike and slab. z is
    the stochastic mask of :func:`stochprune.functional.masked_linear` at the same address. e is the normal of
    :func:`stochprune.rng.normal`, which is independent of z. Without logits, z = 1: plain Gaussian weights (Blundell et
    al. 2015).

    Let G be the gradient of the weight and s = mu + softplus(rho) e. The gradients dmu = G z and
    drho = G z e sigmoid(rho) are reparameterised. They are unbiased for the expected loss over the normals and, with a
    hard mask, over masks. The gradient of the logits is dlogits = G s slope; masked_linear lists the slope of each
    estimator, and says for which expected loss it is unbiased.

    Args:
        x: [..., K], floating. With a vector of D draws: [D, ..., K]; slice d gets the weights of ``draw[d]``.
        mu, rho: [N, K], floating; the standard deviation is softplus(rho).
        logits: [N, K], floating, or None.
        bias: [N] or None.
        seed, draw, stream, estimator, temperature, samples, row_offset, col_offset: as for masked_linear.

    Returns:
        [..., N] in x's dtype; [S, ..., N] with ``samples``; [D, ..., N] with a vector of draws.

    Raises:
        TypeError: a tensor that is not floating.
        ValueError: shapes that do not fit, devices that differ, NaN logits (on the CPU), an unknown estimator, an
            integer out of range.
        RuntimeError: if it is differentiated twice.
    """
    op = "spike_and_slab_linear"
    at = Address(seed, draw, stream, estimator, temperature, samples, row_offset, col_offset)
    given = linear(op, x, {"mu": mu, "rho": rho, "logits": logits}, bias, at)
    y = _spike_and_slab(op, given.x, mu, rho, logits, given.bias, *given.mask, _product.LINEAR)
    return given.restore(y)


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
    row_offset: int = 0,
    col_offset: int = 0,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """Apply a convolution of one, two or three dimensions with the random weights of :func:`spike_and_slab_linear`.

    Normals and masks are those of the matrix ``mu.flatten(1)``.

    Args:
        x: [C, *S] or [M, C, *S], floating. With a vector of D draws: [D, ...] of either; slice d gets the weights of
            ``draw[d]``.
        mu, rho, logits: [N, C / groups, *kernel]; logits may be None.
        stride, padding, dilation, groups: as in torch's convolution, with padding ``"same"`` and ``"valid"``.

    Returns:
        [N, *T] or [M, N, *T]; [S, ...] of these with ``samples``; [D, ...] with a vector of draws.

    Raises:
        TypeError, ValueError, RuntimeError: as for the linear layer.
    """
    op = "spike_and_slab_conv"
    at = Address(seed, draw, stream, estimator, temperature, samples, row_offset, col_offset)
    form = Convolution(stride, padding, dilation, groups)
    given, geometry = convolution(op, x, {"mu": mu, "rho": rho, "logits": logits}, bias, at, form)
    return given.restore(_spike_and_slab(op, given.x, mu, rho, logits, given.bias, *given.mask, geometry))
