"""Layers whose weights are kept or pruned in blocks, whole rows, whole columns, or whole filters of a convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stochprune import functional
from stochprune.functional.structured import block_means, block_of, block_shape, expand_blocks
from stochprune.nn.layer import MaskedLayer, logits_of
from stochprune.nn.masked_conv import MaskedConv1d, MaskedConv2d, MaskedConv3d, _MaskedConv
from stochprune.nn.masked_linear import MaskedLinear
from stochprune.shards import gathered, split_like


class _Structured(MaskedLayer):
    """Base of the structured layers: one logit for each block, expanded to the weight's shape where needed."""

    def thresholded_weight(self) -> Tensor:
        logits = self.mask_logits.detach()
        gate = self.of_weight(self._thresholded(torch.ones_like(logits), logits))
        return self.unmasked_weight() * gate.to(self.weight.dtype)

    def hardened_weight(self, mask: Tensor | None = None) -> Tensor:
        """Return the weight, exactly 0 where ``mask`` prunes; bool, of the weight's shape or of the logits' shape."""
        if mask is not None and mask.shape == self.mask_logits.shape:
            mask = self.of_weight(mask)
        return super().hardened_weight(mask)


class StructuredMaskedLinear(_Structured, MaskedLinear):
    """``y = x (z * weight)^T + bias``, z constant on blocks (:func:`stochprune.functional.masked_linear_blocks`).

    ``mask_logits`` has one entry for each block. Budgets, the KL and ``harden(sparsity=...)`` count blocks.

    Args:
        in_features, out_features, bias: as in :class:`torch.nn.Linear`.
        structure: ``"rows"`` (outputs; the bias stays), ``"columns"`` (inputs), or ``"RxC"`` for blocks of R rows and C
            columns, such as ``"16x16"``.
        **options: as for :class:`MaskedLinear`; a tensor ``keep`` of the weight's shape is averaged over each block.

    Raises:
        ValueError: an unknown structure, or blocks that do not divide the weight.
    """

    structure: str

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, structure: str = "rows", **options: Any
    ) -> None:
        self._configure(structure)
        super().__init__(in_features, out_features, bias, **options)

    def _configure(self, structure: str = "rows") -> None:
        self.structure = structure

    def _initial_logits(self, keep: float | Tensor, weight: Tensor) -> Tensor:
        count, width = weight.shape
        block = block_shape(type(self).__name__, self.structure, (count, width))
        if isinstance(keep, Tensor) and keep.shape == weight.shape:
            keep = block_means(keep.double(), block)
        return logits_of(type(self).__name__, keep, weight.new_empty(count // block[0], width // block[1]))

    def _masked_forward(self, x: Tensor, **at: Any) -> Tensor:
        return functional.masked_linear_blocks(x, self.weight, self.mask_logits, self.bias, **at)

    def of_weight(self, mask: Tensor) -> Tensor:
        return split_like(expand_blocks(gathered(mask), self._block(mask)), self.weight)

    def of_logits(self, values: Tensor) -> Tensor:
        return split_like(block_means(gathered(values), self._block(self.mask_logits)), self.mask_logits)

    def _block(self, grid: Tensor) -> tuple[int, int]:
        return block_of(type(self).__name__, tuple(self.weight.shape), tuple(grid.shape))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, structure={self.structure}"


class _FilterMasked(_Structured, _MaskedConv):
    """A convolution that keeps or prunes whole filters: ``y = z * conv(x, weight) + bias``, with one z for each output.

    ``mask_logits`` is [out_channels, 1]. The masks multiply the outputs instead of the weights. Budgets, the KL and
    ``harden(sparsity=...)`` count filters.

    Args:
        in_channels, out_channels, kernel_size, ...: as in torch's layer; the other arguments as in
            :class:`stochprune.nn.layer.MaskedLayer`. A tensor ``keep`` of the weight's shape is averaged over each
            filter.
    """

    def _initial_logits(self, keep: float | Tensor, weight: Tensor) -> Tensor:
        if isinstance(keep, Tensor) and keep.shape == weight.shape:
            keep = keep.double().flatten(1).mean(1, keepdim=True)
        return logits_of(type(self).__name__, keep, weight.new_empty(len(weight), 1))

    def _masked_forward(self, x: Tensor, output_size: Sequence[int] | None = None, **at: Any) -> Tensor:
        x, geometry = self._placed(x, output_size)
        inner = self.weight.dim() - 1
        y = self.operator[0](x.reshape(-1, *x.shape[-inner:]), self.unmasked_weight(), None, **geometry)
        y = y.reshape(*x.shape[:-inner], *y.shape[1:])
        ones = [1] * (inner - 1)
        z = functional.mask(self.mask_logits, **at).squeeze(-1).to(y.dtype)  # [N], or [D, N] with D draws
        y = y * (z if z.dim() == 1 else z.unsqueeze(1)).unflatten(-1, (-1, *ones))
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, *ones)

    def of_weight(self, mask: Tensor) -> Tensor:
        column = gathered(mask).view(-1, *[1] * (self.weight.dim() - 1))
        return split_like(column.expand(self.weight.shape), self.weight)

    def of_logits(self, values: Tensor) -> Tensor:
        return split_like(gathered(values).flatten(1).mean(1, keepdim=True), self.mask_logits)


class FilterMaskedConv1d(_FilterMasked, MaskedConv1d):
    __doc__ = _FilterMasked.__doc__


class FilterMaskedConv2d(_FilterMasked, MaskedConv2d):
    __doc__ = _FilterMasked.__doc__


class FilterMaskedConv3d(_FilterMasked, MaskedConv3d):
    __doc__ = _FilterMasked.__doc__


FILTERS: dict[type[MaskedLayer], type[MaskedLayer]] = {
    MaskedConv1d: FilterMaskedConv1d,
    MaskedConv2d: FilterMaskedConv2d,
    MaskedConv3d: FilterMaskedConv3d,
}
"""For each convolution with one mask per weight, the convolution with one mask per filter."""
