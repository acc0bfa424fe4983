"""Frozen weights in eight or four bits: tensor subclasses, of torchao or ours, that hold integers and scales.

Such a weight has the shape and the dtype of the numbers that it stands for. It is dequantised for each product and
then dropped, in forward and again in backward; autograd saves the integers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)


class PackedWeight(Tensor):
    """A frozen weight whose numbers another library packs, with their shape and dtype; see :func:`unpacked`.

    Args:
        packed: the integers, in any shape.
        read: returns the numbers of ``packed`` with what it needs besides; of the library.
        shape, dtype: of the weight.
    """

    @staticmethod
    def __new__(cls, packed: Tensor, read: Callable[[Tensor], Tensor], shape: torch.Size, dtype: torch.dtype) -> Any:
        return Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=packed.device)

    def __init__(self, packed: Tensor, read: Callable[[Tensor], Tensor], shape: torch.Size, dtype: torch.dtype) -> None:
        self.packed, self.read = packed, read

    def dequantize(self) -> Tensor:
        """Return the numbers as a plain tensor."""
        return self.read(self.packed).to(self.dtype).view(self.shape)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PackedWeight({tuple(self.shape)}, {self.dtype}, {self.packed.nbytes} bytes)"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        aten, weight, options = torch.ops.aten, args[0], kwargs or {}
        if func in (aten.detach.default, aten.clone.default, aten.alias.default):
            return cls(weight.packed, weight.read, weight.shape, weight.dtype)
        if func is aten._to_copy.default and options.get("device", weight.device) == weight.device:
            return cls(weight.packed, weight.read, weight.shape, options.get("dtype") or weight.dtype)
        raise NotImplementedError(f"{func} of a weight that is packed on {weight.device}: dequantise it first")


def is_quantised(value: Any) -> bool:
    """Return True for a tensor of a type with a ``dequantize`` of its own, such as torchao's."""
    kind = type(value)
    return kind not in _PLAIN and isinstance(value, Tensor) and kind.dequantize is not Tensor.dequantize


def dequantised(value: Any) -> Any:
    """Return the numbers of a quantised tensor as a plain tensor; any other value as it is."""
    if not is_quantised(value):
        return value
    value = value.detach()
    original = getattr(value, "get_original_weight", None)  # of NF4Tensor, whose dequantize is a helper
    return value.dequantize() if original is None else original()
