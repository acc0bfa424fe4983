"""masked_conv1d/2d/3d and masked_conv_transpose1d/2d/3d: torch's convolutions under a stochastic mask.

A backend writes the masked filters to scratch memory, torch's convolution uses them, and they are dropped. Only x,
weight, logits and the address are saved for backward, which samples the mask again.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from stochprune import backends
from stochprune.address import Logits, Mask
from stochprune.functional import _product
from stochprune.functional._address import Address
from stochprune.functional._geometry import Convolution, Sizes
from stochprune.functional._inputs import convolution
from stochprune.functional._op import ADDRESS, product
from stochprune.memory_format import in_format_of


def _forward(x: Tensor, weight: Tensor, logits: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    backend, mask, geometry = backends.resolve(x, weight, logits), Mask(*rest[:7]), rest[7]

    if backend.masked_convolution is not None:
        fused = backend.masked_convolution(x, weight, Logits(logits), bias, mask=mask, geometry=geometry)
        if fused is not None:
            return fused

    def weights(part: slice) -> Tensor:
        return backend.masked_weight(weight, Logits(logits), mask=mask.part(part), dtype=x.dtype)

    return _product.forward(x, weight, bias, weights, geometry, len(mask.draw))


def _fake(x: Tensor, weight: Tensor, logits: Tensor, bias: Any, seed: Tensor, draw: Tensor, *rest: Any) -> Tensor:
    filters = in_format_of(weight, x.new_empty(weight.shape))
    return _product.fake_forward(x, filters, rest[-1], len(draw))


def _backward(grad: Tensor, x: Tensor, weight: Tensor, logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    backend, mask, geometry = backends.resolve(x, weight, logits), Mask(*rest[:7]), rest[7]
    levels, need_x, needs = Logits(logits), rest[8], rest[9:]
    memo: list[Tensor] = []

    def weights(part: slice) -> Tensor:
        memo.clear()
        return backend.masked_weight(weight, levels, mask=mask.part(part), dtype=x.dtype, memo=memo)

    def parameter_grads(part: slice, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return backend.weight_grad(g, weight, levels, mask=mask.part(part), needs=needs, memo=memo)

    wanted = (need_x, any(needs))
    dx, grads = _product.backward(grad, x, weight, weights, parameter_grads, geometry, len(mask.draw), wanted)
    dweight, dlogits = _product.operator_grads((weight, logits), grads, x)
    return dx, dweight, dlogits


_masked_convolution = product(
    "masked_convolution", ("x", "weight", "logits"), f"{ADDRESS}, SymInt[] geometry", _forward, _backward, _fake
)


class MaskedConvolution(Protocol):
    """The type of masked_conv1d, masked_conv2d and masked_conv3d."""

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        logits: Tensor,
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
    ) -> Tensor: ...


class MaskedTransposedConvolution(Protocol):
    """The type of masked_conv_transpose1d, masked_conv_transpose2d and masked_conv_transpose3d."""

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        logits: Tensor,
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
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        dilation: Sizes = 1,
    ) -> Tensor: ...


def _convolution_of(dimensions: int) -> MaskedConvolution:
    op = f"masked_conv{dimensions}d"

    def masked_conv(
        x: Tensor,
        weight: Tensor,
        logits: Tensor,
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
        """Apply a convolution under a stochastic mask: torch's convolution with the weight ``z * weight``.

        The mask z, its estimators and the gradients are those of :func:`stochprune.functional.masked_linear`. A weight
        [N, ...] has the masks of the matrix ``weight.flatten(1)``, whatever its memory format: the mask's row is the
        first index of the weight, and its column is the row-major position among the other indices.

        Args:
            x: [C, *S] or [M, C, *S], floating, with spatial sizes S. With a vector of D draws: [D, ...] of either;
                slice d gets the mask of ``draw[d]``. If M is missing or 1, each example has its own mask, and the D
                convolutions run as one convolution with D times as many groups.
            weight: [N, C / groups, *kernel], floating. It may be wider than x: the convolution is computed in x's
                dtype. A weight without a gradient may be float8_e4m3fn, as for masked_linear.
            logits: like ``weight``; the probability of keeping is sigmoid(logits).
            bias: [N] or None.
            seed, draw, stream, estimator, temperature: as for masked_linear.
            samples: S masks for the same x, with the draws draw .. draw + S - 1.
            row_offset, col_offset: as for masked_linear; they refer to the weight as a matrix.
            stride, padding, dilation, groups: as in torch's convolution, with padding ``"same"`` and ``"valid"``.

        Returns:
            [N, *T] or [M, N, *T] in x's dtype, with spatial sizes T; [S, ...] of these with ``samples``, [D, ...] with
            a vector of draws.

        Raises:
            TypeError: a tensor that is not floating, or x narrower than a float64 weight.
            ValueError: shapes that do not fit, a kernel larger than the padded input, devices that differ, NaN logits
                (on the CPU), an unknown estimator or padding, an integer out of range.
            RuntimeError: if it is differentiated twice.
        """
        at = Address(seed, draw, stream, estimator, temperature, samples, row_offset, col_offset)
        return _convolve(op, x, weight, logits, bias, at, Convolution(stride, padding, dilation, groups))

    masked_conv.__name__ = masked_conv.__qualname__ = op
    return masked_conv


def _transposed_convolution_of(dimensions: int) -> MaskedTransposedConvolution:
    op = f"masked_conv_transpose{dimensions}d"

    def masked_conv_transpose(
        x: Tensor,
        weight: Tensor,
        logits: Tensor,
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
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        dilation: Sizes = 1,
    ) -> Tensor:
        """Apply a transposed convolution under a stochastic mask: torch's transposed convolution with ``z * weight``.

        The arguments are those of the masked convolution with the same number of dimensions, but the weight is
        [C, N / groups, *kernel], as in torch: the mask's row is the **input** channel.

        Args:
            stride, padding, output_padding, groups, dilation: as in torch's transposed convolution.

        Raises:
            TypeError, ValueError, RuntimeError: as for the masked convolution.
        """
        at = Address(seed, draw, stream, estimator, temperature, samples, row_offset, col_offset)
        form = Convolution(stride, padding, dilation, groups, True, output_padding)
        return _convolve(op, x, weight, logits, bias, at, form)

    masked_conv_transpose.__name__ = masked_conv_transpose.__qualname__ = op
    return masked_conv_transpose


def _convolve(
    op: str, x: Tensor, weight: Tensor, logits: Tensor, bias: Tensor | None, at: Address, form: Convolution
) -> Tensor:
    dimensions = int(op[-2])
    if isinstance(weight, Tensor) and weight.dim() != dimensions + 2:
        raise ValueError(f"{op}: weight must have {dimensions + 2} dimensions, got shape {tuple(weight.shape)}")
    given, geometry = convolution(op, x, {"weight": weight, "logits": logits}, bias, at, form)
    return given.restore(_masked_convolution(op, given.x, weight, logits, given.bias, *given.mask, geometry))


masked_conv1d, masked_conv2d, masked_conv3d = map(_convolution_of, (1, 2, 3))
masked_conv_transpose1d, masked_conv_transpose2d, masked_conv_transpose3d = map(_transposed_convolution_of, (1, 2, 3))
