"""Masked weights in scratch memory and the gradients through their masks, for products that torch computes."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from stochprune import _C, materialised
from stochprune.address import Grads2, Logits, Mask, Memo, Needs2, Rows
from stochprune.memory_format import in_format_of
from stochprune.native.masked import masked, write_masked_weight
from stochprune.native.results import fresh


def masked_weight(
    weight: Tensor, logits: Logits, *, mask: Mask, dtype: torch.dtype, rows: Rows = None, memo: Memo = None
) -> Tensor:
    """As :func:`stochprune.reference.masked_weight`, in the shared workspace; ``memo`` gets hard masks as bits."""
    layer = masked(weight, logits, mask, rows)
    shape = (len(mask.draw), layer.shape[0], *weight.shape[1:])
    out, bits = write_masked_weight(layer, shape, dtype, memo is not None)
    if memo is not None:
        memo.append(bits)
    return out if weight.is_contiguous() else in_format_of(weight, out)


def weight_grad(
    grad: Tensor, weight: Tensor, logits: Logits, *, mask: Mask, needs: Needs2, rows: Rows = None, memo: Memo = None
) -> Grads2:
    """As :func:`stochprune.reference.weight_grad`."""
    grad, shape = grad.contiguous(), grad.shape[1:]
    # The gradient of a single draw is not needed afterwards: one of the results may take its memory.
    spare = grad[0] if grad.shape[0] == 1 else None
    dweight = dlogits = None
    if needs[0]:
        if spare is not None and spare.dtype == weight.dtype:
            dweight, spare = spare, None
        else:
            dweight = fresh(shape, weight.dtype)
    if needs[1]:
        dlogits = spare if spare is not None and spare.dtype == logits.dtype else fresh(shape, logits.dtype)
    layer, bits = masked(weight, logits, mask, rows), memo[0] if memo else None
    _C.weight_grad(layer, grad, bits, (dweight, dlogits), torch.get_num_threads())
    return dweight, dlogits


masked_weights = partial(materialised.masked_weights, masked_weight)
multi_layer_grads = partial(materialised.multi_layer_grads, weight_grad)
