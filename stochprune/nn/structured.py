"""StructuredMaskedLinear: nn.Linear whose weights are kept or pruned in blocks, whole rows or whole columns."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from stochprune import functional
from stochprune.functional.structured import block_of, expand_blocks
from stochprune.nn.layer import logits_of
from stochprune.nn.masked_linear import MaskedLinear


class StructuredMaskedLinear(MaskedLinear):
    """``y = x (z * weight)^T + bias``, z constant on blocks (:func:`stochprune.functional.masked_linear_blocks`).

    ``mask_logits`` has one entry for a block. Budgets, divergences and ``harden(sparsity=...)`` count blocks.

    Args:
        in_features, out_features, bias: as in :class:`torch.nn.Linear`.
        structure: ``"rows"`` (outputs; the bias stays), ``"columns"`` (inputs), or ``"RxC"`` for blocks of R rows and C
            columns, such as ``"16x16"``.
        **options: as for :class:`MaskedLinear`; a tensor ``keep`` like the weight is averaged over each block.

    Raises:
        ValueError: a structure that is none, or blocks that do not divide the weight.
    """

    structure: str

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, structure: str = "rows", **options: Any
    ) -> None:
        self._configure(structure)
        super().__init__(in_features, out_features, bias, **options)

    def _configure(self, structure: str = "rows") -> None:
        rows, x, columns = structure.partition("x")
        if structure not in ("rows", "columns") and not (x and rows.isdecimal() and columns.isdecimal()):
            raise ValueError(f"structure must be rows, columns or RxC, such as 16x16, got {structure!r}")
        self.structure = structure

    def _initial_logits(self, keep: float | Tensor, weight: Tensor) -> Tensor:
        count, width = weight.shape
        sizes = {"rows": (1, width), "columns": (count, 1)}.get(self.structure)
        rows, columns = sizes or map(int, self.structure.split("x"))
        if not rows or not columns or count % rows or width % columns:
            raise ValueError(f"blocks of {rows}x{columns} do not divide a weight of {count}x{width}")
        grid = weight.new_empty(count // rows, width // columns)
        if isinstance(keep, Tensor) and keep.shape == weight.shape:
            keep = keep.double().view(len(grid), rows, grid.shape[1], columns).mean((1, 3))
        return logits_of(keep, grid)

    def gate(self) -> Tensor:
        """The evaluation mode's mask, of the weight's shape, from the blocks' logits."""
        return self._expand(self._gate_of(self.mask_logits.detach()))

    def hardened_weight(self, mask: Tensor | None = None) -> Tensor:
        """The weight, exactly 0 where ``mask`` prunes: bool like the weight, or like the logits for whole blocks."""
        if mask is not None and mask.shape == self.mask_logits.shape:
            mask = self._expand(mask)
        return super().hardened_weight(mask)

    def forward(self, x: Tensor) -> Tensor:
        if not self.samples_now:
            return F.linear(x, self.thresholded_weight(), self.bias)
        return functional.masked_linear_blocks(x, self.weight, self.mask_logits, self.bias, **self.address())

    def _expand(self, mask: Tensor) -> Tensor:
        block = block_of(type(self).__name__, tuple(self.weight.shape), tuple(mask.shape))
        return expand_blocks(mask, block)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, structure={self.structure}"
