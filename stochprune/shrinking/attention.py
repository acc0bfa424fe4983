"""Attention whose heads can be removed, in place of torch's, whose number of heads fixes the width of a head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention like :class:`torch.nn.MultiheadAttention`, with a width of heads of its own.

    The forward pass takes what the original takes, and returns the output [..., L, embed_dim] and the attention
    weights. The weights are None if the caller needs none, or if heads are gone: they would not be those of all heads.

    Attributes:
        num_heads, head_dim: the number of heads that are left, and their width.
        gives_weights: whether no head is gone.

    Args:
        original: the layer to replace; its parameters are copied.
    """

    # What nn.TransformerEncoderLayer asks before it calls its attention: not to use torch's fused function.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.head_dim = original.num_heads, original.head_dim
        self.batch_first, self.dropout, self.gives_weights = original.batch_first, original.dropout, True
        if original._qkv_same_embed_dim:
            weights = [*original.in_proj_weight.chunk(3)]
        else:
            weights = [original.q_proj_weight, original.k_proj_weight, original.v_proj_weight]
        biases = [None] * 3 if original.in_proj_bias is None else [*original.in_proj_bias.chunk(3)]
        self.q_proj, self.k_proj, self.v_proj = (_linear(w, b) for w, b in zip(weights, biases, strict=True))
        self.out_proj = _linear(original.out_proj.weight, original.out_proj.bias)
        self.train(original.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if not self.batch_first and query.dim() == 3:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(-2, -3)  # [..., heads, L, d]
            for layer, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        mask = self._mask(q, attn_mask, key_padding_mask)
        y = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        y = self.out_proj(y.transpose(-2, -3).flatten(-2))
        if not self.batch_first and y.dim() == 3:
            y = y.transpose(0, 1)
        if not (need_weights and self.gives_weights):
            return y, None
        scores = q @ k.transpose(-1, -2) / self.head_dim**0.5
        weights = (scores if mask is None else scores + mask).softmax(-1)  # [..., heads, L, S]
        return y, weights.mean(-3) if average_attn_weights else weights

    def _mask(self, q: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor | None:
        """Return what is added to the scores, of a shape that broadcasts to [..., heads, L, S]."""
        masks = []
        if attn_mask is not None:
            by_head = attn_mask.dim() == 3 and q.dim() == 4  # [B heads, L, S]
            masks.append(attn_mask.unflatten(0, (len(q), -1)) if by_head else attn_mask)
        if key_padding_mask is not None:
            masks.append(key_padding_mask[..., None, None, :])
        floating = [_additive(mask, q.dtype) for mask in masks]
        return None if not floating else sum(floating[1:], start=floating[0])


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask to add: of a bool one, minus infinity where it is True."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.utils.skip_init(
        nn.Linear, weight.shape[1], weight.shape[0], bias is not None, device=weight.device, dtype=weight.dtype
    )
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return layer


def open_attention(model: nn.Module) -> dict[str, nn.MultiheadAttention]:
    """Replace torch's attention in a model, in place; return what was replaced, by name.

    Subclasses, layers with ``bias_k`` or ``add_zero_attn``, and layers that share parameters stay.
    """
    holders = [id(p) for m in model.modules() for p in m._parameters.values() if p is not None]
    replaced: dict[str, nn.MultiheadAttention] = {}
    opened: dict[nn.Module, Attention] = {}  # a layer may have several names
    for name, module in [*model.named_modules(remove_duplicate=False)]:
        if type(module) is not nn.MultiheadAttention or module.bias_k is not None or module.add_zero_attn:
            continue
        if name and all(holders.count(id(p)) == 1 for p in module.parameters()):
            replaced[name] = module
            model.set_submodule(name, opened.setdefault(module, Attention(module)))
    for encoder in _encoders(model).values():
        encoder.use_nested_tensor = False  # torch's fused path reads the layers' weights directly
    return replaced


def close_attention(model: nn.Module, replaced: dict[str, nn.MultiheadAttention], original: nn.Module) -> None:
    """Put torch's attention back, in place, where nothing of it went; ``original`` is the model before."""
    opened = _encoders(model)
    for name, attention in replaced.items():
        now = model.get_submodule(name)
        if not isinstance(now, Attention):
            continue
        now.gives_weights = now.num_heads == attention.num_heads
        if [p.shape for p in now.parameters()] == [p.shape for p in Attention(attention).parameters()]:
            model.set_submodule(name, attention)
    for name in opened.keys() - _encoders(model).keys():
        model.get_submodule(name).use_nested_tensor = original.get_submodule(name).use_nested_tensor


def _encoders(model: nn.Module) -> dict[str, nn.TransformerEncoder]:
    """Return the encoders of torch in which attention is replaced, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(m, Attention) for m in module.modules())
    }
