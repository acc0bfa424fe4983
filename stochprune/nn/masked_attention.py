"""MaskedMultiheadAttention: nn.MultiheadAttention whose projections run under stochastic masks."""

from __future__ import annotations

from torch import nn

from stochprune.nn.masked_module import MaskedModule


class MaskedMultiheadAttention(MaskedModule, nn.MultiheadAttention):
    """``nn.MultiheadAttention`` under masked ``in_proj_weight`` and ``out_proj.weight``, in every mode and option.

    Where kdim or vdim differ from embed_dim, ``in_proj_weight`` is three weights: ``q_proj_weight``, ``k_proj_weight``
    and ``v_proj_weight``. ``bias_k`` and ``bias_v`` have no masks. Torch's fast path of evaluation mode reads the
    masked weights too.

    Shape:
        as in torch's module.
    """

    dense_type = nn.MultiheadAttention

    @classmethod
    def weight_names(cls, dense: nn.Module) -> tuple[str, ...]:
        apart = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        return *(("in_proj_weight",) if dense._qkv_same_embed_dim else apart), "out_proj.weight"
