"""UncastLogits: the part of a masked layer that refuses logits which FSDP has cast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stochprune.nn.mask_source import MaskSource


class UncastLogits(MaskSource):
    """A source of masks with logits, which a mixed precision policy of FSDP must leave in their dtype.

    FSDP casts what it gathers by a policy that no hook of a layer sees. So the layer keeps the dtype of its logits from
    before, and compares it in each forward pass.
    """

    mask_logits: Tensor
    _sharded_dtype: torch.dtype | None = None  # of the logits where FSDP manages the layer

    @property
    def _is_fsdp_managed_module(self) -> bool:
        """True once FSDP manages the layer; both FSDPs set this before they cast anything."""
        return self._sharded_dtype is not None

    @_is_fsdp_managed_module.setter
    def _is_fsdp_managed_module(self, managed: bool) -> None:
        self._sharded_dtype = self.mask_logits.dtype if managed else None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        if self._sharded_dtype is not None:
            self._sharded_dtype = self.mask_logits.dtype
        return self

    def _refuse_cast(self) -> None:
        raise ValueError(
            f"{type(self).__name__}: FSDP gave mask_logits in {self.mask_logits.dtype}, but they are "
            f"{self._sharded_dtype}: its mixed precision policy casts them, which changes the masks. Shard with "
            f"stochprune.distributed.shard(model, param_dtype=...), which keeps the logits as they are; or give no "
            f"param_dtype, and convert a model whose weights are {self.mask_logits.dtype} with logits_dtype="
            f"{self._sharded_dtype}"
        )
