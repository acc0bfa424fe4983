"""The fused path of torch's encoder layers in evaluation mode, which calls none of their modules."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from stochprune.nn.mask_source import MaskSource

_PARTS = {
    "self_attn": nn.MultiheadAttention,
    **dict.fromkeys(("linear1", "linear2"), nn.Linear),
    **dict.fromkeys(("norm1", "norm2"), nn.LayerNorm),
    **dict.fromkeys(("dropout", "dropout1", "dropout2"), nn.Dropout),
}
"""The modules of an encoder layer that the fused path does not call."""
_NUMBERS = {F.relu: 1, nn.ReLU: 1, F.gelu: 2, nn.GELU: 2}
_CLOSED = "_closed_nested_tensor"


def settle_fast_paths(model: nn.Module) -> None:
    """Let the encoder layers of torch in a model take their fused path only while all of their modules are torch's own.

    An encoder with other layers makes no nested tensors of padded inputs, which these do not read.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            if not _is_plain(module):
                module.activation_relu_or_gelu = 0  # forbids the path
            elif not module.activation_relu_or_gelu:
                module.activation_relu_or_gelu = _NUMBERS.get(
                    module.activation, _NUMBERS.get(type(module.activation), 0)
                )
        elif isinstance(module, nn.TransformerEncoder):
            plain = all(_is_plain(m) for m in module.modules() if isinstance(m, nn.TransformerEncoderLayer))
            if not plain and module.use_nested_tensor:
                module.use_nested_tensor = False
                setattr(module, _CLOSED, True)
            elif plain and module.__dict__.pop(_CLOSED, False):
                module.use_nested_tensor = True


def _is_plain(layer: nn.TransformerEncoderLayer) -> bool:
    parts = all(isinstance(getattr(layer, name), kind) for name, kind in _PARTS.items())
    return parts and not any(isinstance(module, MaskSource) for module in layer.modules())
