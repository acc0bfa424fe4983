"""MaskedConv1d/2d/3d and MaskedConvTranspose1d/2d/3d: torch's convolutions under a stochastic mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from stochprune import functional
from stochprune.nn.layer import Layer, MaskedLayer


class _MaskedConvolution(MaskedLayer):
    """The common part of plain and transposed masked convolutions."""

    settings: ClassVar[tuple[str, ...]] = (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
        "bias",
    )
    operator: ClassVar[tuple[Callable[..., Tensor], Callable[..., Tensor]]]  # torch's and the masked one
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    output_padding: tuple[int, ...] = ()

    def _dense_forward(self, x: Tensor, weight: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        x, geometry = self._placed(x, output_size)
        return self.operator[0](x, weight, self.bias, **geometry)

    def _masked_forward(self, x: Tensor, output_size: Sequence[int] | None = None, **at: Any) -> Tensor:
        x, geometry = self._placed(x, output_size)
        return self.operator[1](x, *self._trained(), **at, **geometry)

    def _placed(self, x: Tensor, output_size: Sequence[int] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """x, padded where torch's operator does not pad it, and the arguments that follow the bias."""
        raise NotImplementedError(type(self).__name__)


class _MaskedConv(_MaskedConvolution):
    """``nn.Conv`` with the weight ``z * weight``, the mask z drawn in each forward and never stored.

    Args:
        in_channels, out_channels, kernel_size, ...: as in torch's layer, with its padding modes; the other arguments as
            in :class:`stochprune.nn.layer.MaskedLayer`.

    Shape:
        as in torch's layer.
    """

    def _placed(self, x: Tensor, output_size: Sequence[int] | None = None) -> tuple[Tensor, dict[str, Any]]:
        if output_size is not None:
            raise TypeError(f"{type(self).__name__}: output_size is of transposed convolutions, got {output_size}")
        geometry = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        if self.padding_mode == "zeros":
            return x, geometry
        inner = len(self.kernel_size) + 1
        padded = F.pad(x.reshape(-1, *x.shape[-inner:]), self._sides(), mode=self.padding_mode)
        return padded.reshape(*x.shape[:-inner], *padded.shape[1:]), {**geometry, "padding": 0}

    def _local_forward(self, x: Tensor, output_size: Sequence[int] | None = None, **at: Any) -> Tensor:
        x, geometry = self._placed(x, output_size)
        at |= geometry
        return functional.local_reparameterised_conv(x, self.weight, self.mask_logits, None, self.bias, **at)

    def _sides(self) -> list[int]:
        """Return the padding before and after, from the last dimension to the first."""
        sides: list[int] = []
        for i in reversed(range(len(self.kernel_size))):
            if isinstance(self.padding, str):
                total = self.dilation[i] * (self.kernel_size[i] - 1) if self.padding == "same" else 0
                sides += [total // 2, total - total // 2]
            else:
                sides += [self.padding[i]] * 2
        return sides


class _MaskedConvTranspose(_MaskedConvolution):
    """``nn.ConvTranspose`` with the weight ``z * weight``, the mask z drawn in each forward and never stored.

    The mask's rows are those of the weight as torch keeps it, the input channels.

    Args:
        in_channels, out_channels, kernel_size, ...: as in torch's layer; the other arguments as in
            :class:`stochprune.nn.layer.MaskedLayer`.

    Shape:
        as in torch's layer.
    """

    settings = (*_MaskedConvolution.settings, "output_padding")

    def _placed(self, x: Tensor, output_size: Sequence[int] | None = None) -> tuple[Tensor, dict[str, Any]]:
        return x, {
            "stride": self.stride,
            "padding": self.padding,
            "output_padding": self.output_padding if output_size is None else self._padding_for(x, output_size),
            "groups": self.groups,
            "dilation": self.dilation,
        }

    def _padding_for(self, x: Tensor, output_size: Sequence[int]) -> list[int]:
        """Return the output padding for this output size; inside ``batched_samples`` x may be [D, M, C, *S]."""
        dimensions = len(self.kernel_size)
        return nn.modules.conv._ConvTransposeNd._output_padding(
            self,  # type: ignore[arg-type]  # which needs no more than the attributes that both have
            x.flatten(0, -dimensions - 2) if x.dim() > dimensions + 2 else x,
            list(output_size),
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.kernel_size,  # type: ignore[arg-type]
            dimensions,
            self.dilation,  # type: ignore[arg-type]
        )


class MaskedConv1d(_MaskedConv):
    __doc__ = _MaskedConv.__doc__
    dense_type = nn.Conv1d
    operator = F.conv1d, functional.masked_conv1d

    @classmethod
    def from_conv1d(cls: type[Layer], conv: nn.Conv1d, keep: float | Tensor = 0.95, **options: Any) -> Layer:
        """See :meth:`from_dense`."""
        return cls.from_dense(conv, keep, **options)

    def to_conv1d(self, mask: Tensor | None = None) -> nn.Module:
        """See :meth:`to_dense`."""
        return self.to_dense(mask)


class MaskedConv2d(_MaskedConv):
    __doc__ = _MaskedConv.__doc__
    dense_type = nn.Conv2d
    operator = F.conv2d, functional.masked_conv2d

    @classmethod
    def from_conv2d(cls: type[Layer], conv: nn.Conv2d, keep: float | Tensor = 0.95, **options: Any) -> Layer:
        """See :meth:`from_dense`."""
        return cls.from_dense(conv, keep, **options)

    def to_conv2d(self, mask: Tensor | None = None) -> nn.Module:
        """See :meth:`to_dense`."""
        return self.to_dense(mask)


class MaskedConv3d(_MaskedConv):
    __doc__ = _MaskedConv.__doc__
    dense_type = nn.Conv3d
    operator = F.conv3d, functional.masked_conv3d

    @classmethod
    def from_conv3d(cls: type[Layer], conv: nn.Conv3d, keep: float | Tensor = 0.95, **options: Any) -> Layer:
        """See :meth:`from_dense`."""
        return cls.from_dense(conv, keep, **options)

    def to_conv3d(self, mask: Tensor | None = None) -> nn.Module:
        """See :meth:`to_dense`."""
        return self.to_dense(mask)


class MaskedConvTranspose1d(_MaskedConvTranspose):
    __doc__ = _MaskedConvTranspose.__doc__
    dense_type = nn.ConvTranspose1d
    operator = F.conv_transpose1d, functional.masked_conv_transpose1d


class MaskedConvTranspose2d(_MaskedConvTranspose):
    __doc__ = _MaskedConvTranspose.__doc__
    dense_type = nn.ConvTranspose2d
    operator = F.conv_transpose2d, functional.masked_conv_transpose2d


class MaskedConvTranspose3d(_MaskedConvTranspose):
    __doc__ = _MaskedConvTranspose.__doc__
    dense_type = nn.ConvTranspose3d
    operator = F.conv_transpose3d, functional.masked_conv_transpose3d


CONVOLUTIONS: tuple[type[MaskedLayer], ...] = (
    MaskedConv1d,
    MaskedConv2d,
    MaskedConv3d,
    MaskedConvTranspose1d,
    MaskedConvTranspose2d,
    MaskedConvTranspose3d,
)
