"""masked_conv1d/2d/3d and masked_conv_transpose1d/2d/3d: torch's convolutions under a stochastic mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from stochprune import rng
from stochprune.functional._autograd import reshaped
from stochprune.functional._checks import (
    address,
    check_estimator,
    check_floating,
    check_kernel,
    check_same_device,
    in_product_dtype,
    named,
    sizes,
)
from stochprune.functional._convolution import Geometry, masked_convolution

Sizes = int | Sequence[int]


def _convolution_of(dimensions: int):  # type: ignore[no-untyped-def]  # the type is that of the function below
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
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
    ) -> Tensor:
        """A convolution under a stochastic mask: that of torch with the weight ``z * weight``.

        The mask z, its estimators and the gradients are those of :func:`stochprune.functional.masked_linear`. The
        mask's row is the first index of the weight, its column the row-major position among the others: a weight
        [N, ...] has the masks of the matrix ``weight.flatten(1)``, whatever its memory format.

        Args:
            x: [C, *S] or [M, C, *S], floating, S the spatial sizes. With a vector of D draws: [D, ...] of either,
                slice d under ``draw[d]``; with M left out, or 1, that is a mask for each example, and the D
                convolutions run as one of D times as many groups.
            weight: [N, C / groups, *kernel], floating. May be wider than x: the convolution is taken in x's dtype.
            logits: like ``weight``; the probability of keeping is sigmoid(logits).
            bias: [N] or None.
            seed, draw, stream, estimator, temperature: as for masked_linear.
            samples: S masks of the same x: draws draw .. draw + S - 1.
            stride, padding, dilation, groups: as in torch's convolution, with padding ``"same"`` and ``"valid"``.

        Returns:
            [N, *T] or [M, N, *T] in x's dtype, T the spatial sizes of the result; [S, ...] of these with ``samples``,
            [D, ...] with a vector of draws.

        Raises:
            TypeError: a tensor that is not floating, or x narrower than a float64 weight.
            ValueError: shapes that do not fit, a kernel larger than the padded input, devices that differ, NaN logits
                (on the CPU), an unknown estimator or padding, an integer out of range.
            RuntimeError: on differentiating twice.
        """
        extra = [0] * dimensions
        if isinstance(padding, str):
            amount, extra = _padding(op, padding, stride, dilation, weight.shape[2:])
        else:
            amount = sizes(op, "padding", padding, dimensions)
        if any(extra):  # torch too pads an odd amount at the end
            x = F.pad(x, [side for after in reversed(extra) for side in (0, after)])
        return _apply(
            op, x, weight, logits, bias, seed, draw, stream, estimator, temperature, samples,
            stride, amount, dilation, False, 0, groups,
        )  # fmt: skip

    masked_conv.__name__ = masked_conv.__qualname__ = op
    return masked_conv


def _transposed_convolution_of(dimensions: int):  # type: ignore[no-untyped-def]  # as above
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
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        dilation: Sizes = 1,
    ) -> Tensor:
        """A transposed convolution under a stochastic mask: that of torch with the weight ``z * weight``.

        As the masked convolution of the same number of dimensions (which see), but the weight is
        [C, N / groups, *kernel], as torch keeps it: the mask's row is the **input** channel.

        Args:
            stride, padding, output_padding, groups, dilation: as in torch's transposed convolution.

        Raises:
            TypeError, ValueError, RuntimeError: as for the masked convolution.
        """
        return _apply(
            op, x, weight, logits, bias, seed, draw, stream, estimator, temperature, samples,
            stride, padding, dilation, True, output_padding, groups,
        )  # fmt: skip

    masked_conv_transpose.__name__ = masked_conv_transpose.__qualname__ = op
    return masked_conv_transpose


def _apply(
    op: str,
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    bias: Tensor | None,
    seed: int | Tensor,
    draw: int | Tensor,
    stream: int,
    estimator: str,
    temperature: float,
    samples: int | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
) -> Tensor:
    check_estimator(op, estimator, temperature)
    check_floating(op, x=x, weight=weight, logits=logits, bias=bias)
    check_same_device(op, x=x, weight=weight, logits=logits, bias=bias)
    dimensions = int(op[-2])
    if weight.dim() != dimensions + 2:
        raise ValueError(f"{op}: weight must have {dimensions + 2} dimensions, got shape {tuple(weight.shape)}")
    if logits.shape != weight.shape:
        raise ValueError(f"{op}: logits {tuple(logits.shape)} and weight {tuple(weight.shape)} differ in shape")
    size = {"rows": weight.shape[0], "cols": weight.shape[1:].numel()}
    at = address(op, seed, draw, stream, x.device, samples=samples, **size)
    groups = rng.integer(op, "groups", groups)
    geometry = Geometry(
        sizes(op, "stride", stride, dimensions),
        sizes(op, "padding", padding, dimensions),
        sizes(op, "dilation", dilation, dimensions),
        transposed,
        sizes(op, "output_padding", output_padding, dimensions),
        groups,
    )
    if groups < 1 or not weight.shape[0] or weight.shape[0] % groups:
        raise ValueError(f"{op}: weight {tuple(weight.shape)} does not divide into {groups} groups")
    channels, outputs = weight.shape[1] * groups, weight.shape[0]
    if transposed:
        channels, outputs = outputs, channels
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"{op}: bias {tuple(bias.shape)} does not fit {outputs} output channels")

    x, bias = in_product_dtype(op, x, "weight", weight, bias)
    draws = len(at.draw)
    many = samples is not None or draws != 1
    apart = many and samples is None  # each draw has an x of its own
    inner = x.dim() - apart
    if inner not in (dimensions + 1, dimensions + 2) or x.shape[-dimensions - 1] != channels:
        raise ValueError(
            f"{op}: x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit"
            + (f" in {groups} groups" if groups > 1 else "")
            + (f" with {draws} draws" if apart else "")
        )
    if apart and x.shape[0] != draws:
        raise ValueError(f"{op}: x {tuple(x.shape)} has no leading dimension of {draws}, one for each draw")
    spatial, kernel = x.shape[-dimensions:], weight.shape[2:]
    if transposed:
        _check_output(op, spatial, kernel, geometry)
    else:
        check_kernel(op, spatial, kernel, geometry.padding, geometry.dilation)
    single = inner == dimensions + 1
    x = x.unsqueeze(-dimensions - 2) if single else x  # [(D,) M, C, *S]
    x = x if apart else x.unsqueeze(0).expand(draws, *(-1,) * x.dim())
    options = (estimator, temperature, geometry.packed())
    y = named(op, masked_convolution, x, weight, logits, bias, *at, *options)
    return reshaped(y, (*y.shape[: 1 if many else 0], *y.shape[2 if single else 1 :]))


def _check_output(op: str, x: Sequence[int], kernel: Sequence[int], geometry: Geometry) -> None:
    """Raise where a transposed convolution gives nothing, or its output padding is none that torch takes."""
    sides = zip(x, kernel, *geometry[:3], geometry.output_padding, strict=True)
    for n, k, s, p, d, extra in sides:
        if extra >= max(s, d):
            raise ValueError(f"{op}: output_padding {geometry.output_padding} must be below stride or dilation")
        if (n - 1) * s - 2 * p + d * (k - 1) + extra + 1 < 1:
            raise ValueError(f"{op}: padding {geometry.padding} leaves nothing of x's spatial sizes {tuple(x)}")


def _padding(
    op: str, padding: str, stride: Sizes, dilation: Sizes, kernel: Sequence[int]
) -> tuple[list[int], list[int]]:
    """A padding by name as an amount for both sides and an extra amount for the end, in each dimension."""
    if padding not in ("same", "valid"):
        raise ValueError(f"{op}: padding must be numbers, 'same' or 'valid', got {padding!r}")
    if padding == "valid":
        return [0] * len(kernel), [0] * len(kernel)
    if max(sizes(op, "stride", stride, len(kernel))) > 1:
        raise ValueError(f"{op}: padding 'same' needs stride 1, got {stride}")
    total = [d * (k - 1) for d, k in zip(sizes(op, "dilation", dilation, len(kernel)), kernel, strict=True)]
    return [t // 2 for t in total], [t % 2 for t in total]


masked_conv1d, masked_conv2d, masked_conv3d = map(_convolution_of, (1, 2, 3))
masked_conv_transpose1d, masked_conv_transpose2d, masked_conv_transpose3d = map(_transposed_convolution_of, (1, 2, 3))
