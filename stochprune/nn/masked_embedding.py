"""MaskedEmbedding: nn.Embedding under a stochastic mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochprune import functional
from stochprune.nn.layer import Layer, MaskedLayer
from stochprune.shards import is_dtensor


class MaskedEmbedding(MaskedLayer):
    """Rows of ``z * weight``, the mask z drawn in each forward for the rows that are looked up, and never stored.

    Args:
        num_embeddings, embedding_dim, padding_idx: as in :class:`torch.nn.Embedding`; the other arguments as in
            :class:`stochprune.nn.layer.MaskedLayer`.

    Shape:
        input [...], integers; output [..., embedding_dim].
    """

    dense_type = nn.Embedding
    settings = ("num_embeddings", "embedding_dim", "padding_idx")
    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None
    # What else torch's representation shows: options that cannot be masked.
    max_norm, norm_type, scale_grad_by_freq, sparse = None, 2.0, False, False

    def _dense_forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.embedding(x, weight, self.padding_idx)

    def _masked_forward(self, x: Tensor, **at: Any) -> Tensor:
        return functional.masked_embedding(x, self.weight, self.mask_logits, padding_idx=self.padding_idx, **at)

    def _thresholded_forward(self, x: Tensor) -> Tensor:
        """Look the rows up first: a table may have many more than a batch asks for."""
        if is_dtensor(self.weight):  # rows that are looked up in parts do not combine before they are added
            return super()._thresholded_forward(x)
        rows = self._dense_forward(x, self.unmasked_weight())
        return self._thresholded(rows, F.embedding(x, self.mask_logits.detach()))

    @classmethod
    def from_embedding(cls: type[Layer], embedding: nn.Embedding, keep: float | Tensor = 0.95, **options: Any) -> Layer:
        """See :meth:`from_dense`.

        Raises:
            ValueError: an option of the embedding that has no masked counterpart.
        """
        return cls.from_dense(embedding, keep, **options)

    def to_embedding(self, mask: Tensor | None = None) -> nn.Module:
        """See :meth:`to_dense`."""
        return self.to_dense(mask)

    def _adopt(self, dense: nn.Module, *args: Any, **options: Any) -> None:
        reason = embedding_obstacle(dense)
        if reason:
            raise ValueError(f"MaskedEmbedding: {reason}")
        super()._adopt(dense, *args, **options)

    def _initialise(self, numbers: np.random.Generator) -> None:
        normal = torch.from_numpy(numbers.standard_normal(tuple(self.weight.shape)))
        if self.padding_idx is not None:
            normal[self.padding_idx] = 0
        self.weight.detach().copy_(normal)


def embedding_obstacle(embedding: nn.Module) -> str | None:
    """Return why an embedding cannot be masked; None if it can be."""
    if getattr(embedding, "max_norm", None) is not None:
        return "max_norm changes the table in forward, behind the mask"
    if getattr(embedding, "sparse", False):
        return "sparse gradients are not offered: the gradients of weight and logits are dense"
    if getattr(embedding, "scale_grad_by_freq", False):
        return "scale_grad_by_freq is not offered"
    return None
