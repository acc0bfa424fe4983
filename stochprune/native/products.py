"""The products of a masked linear layer: torch multiplies x by masked weights in the shared workspace.

Each product has three forms: for several draws, for one draw, and for one draw of a weight that is larger than the
workspace, which takes panels of its rows in turn. ``layer`` holds weight and logits [N, K] and the masks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stochprune import _C
from stochprune.address import Grads3, KLTerm, Needs3
from stochprune.native.masked import write_masked_weight
from stochprune.native.results import fresh_like, fresh_product
from stochprune.native.workspace import workspace

Targets = tuple[Tensor | None, Tensor | None]
"""The memory for dweight and dlogits [N, K]; what is None is not computed."""


def forward(layer: _C.Masked, x: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """Write y [D, M, N] = x [D, M, K] (z * weight)^T + bias."""
    w, _ = write_masked_weight(layer, (len(x), *layer.shape), x.dtype)
    if bias is None:
        torch.bmm(x, w.mT, out=y)
    else:
        torch.baddbmm(bias, x, w.mT, out=y)


def forward_of_one(layer: _C.Masked, x: Tensor, bias: Tensor | None) -> Tensor:
    """Return y [M, N] of x [M, K], as :func:`forward`: fewer calls, which are most of the time of a small layer."""
    w, _ = write_masked_weight(layer, layer.shape, x.dtype)
    return F.linear(x, w, bias)


def forward_by_panels(layer: _C.Masked, x: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """Write y [M, N] of x [M, K], as :func:`forward`."""
    n, k = layer.shape
    for rows in workspace.panels(n, k, x.dtype):
        part = rows.start, rows.stop - rows.start
        w, _ = write_masked_weight(layer, (part[1], k), x.dtype, part=part)
        if bias is None:
            torch.mm(x, w.mT, out=y[:, rows])
        else:
            torch.addmm(bias[rows], x, w.mT, out=y[:, rows])


def backward(
    layer: _C.Masked, grad: Tensor, x: Tensor, dx: Tensor | None, to: Targets, add: bool, kl: KLTerm | None
) -> None:
    """Write dx [D, M, K], and dweight and dlogits [N, K] summed over draws, of grad [D, M, N] and x [D, M, K].

    Args:
        dx, to: the memory of the results; what is None is not computed.
        add: add to the old values of dweight and dlogits.
        kl: its gradient is added to dlogits.
    """
    shape, bits = (len(x), *layer.shape), None
    if dx is not None:
        w, bits = write_masked_weight(layer, shape, x.dtype, to[0] is not None)
        torch.bmm(grad, w, out=dx)
    target = _target(to, x.dtype)
    if target is not None:
        # dL/d(z * weight) goes straight into a gradient's own memory, unless it is a sum or has another dtype.
        direct = target.dtype == x.dtype and len(x) == 1 and not add
        g = target.unsqueeze(0) if direct else workspace.take(shape, x.dtype)
        torch.bmm(grad.mT, x, out=g)
        threads = torch.get_num_threads()
        _C.weight_grad(layer, g, bits, to, threads, kl, add)


def backward_of_one(
    layer: _C.Masked, grad: Tensor, x: Tensor, dtypes: tuple[torch.dtype, torch.dtype], needs: Needs3, kl: KLTerm | None
) -> Grads3:
    """Return dx [M, K], dweight and dlogits [N, K] of grad [M, N] and x [M, K], as :func:`backward`, in fewer calls.

    Args:
        dtypes: of dweight and dlogits.
    """
    need_x, need_weight, need_logits = needs
    bits = dx = dweight = dlogits = None
    if need_x:
        w, bits = write_masked_weight(layer, layer.shape, x.dtype, need_weight)
        dx = torch.mm(grad, w)
    if need_weight or need_logits:
        # dL/d(z * weight) becomes a gradient of the same dtype; if there is none, it is in the workspace.
        takes_weight = need_weight and dtypes[0] is x.dtype
        takes_logits = need_logits and dtypes[1] is x.dtype and not takes_weight
        if takes_weight or takes_logits:
            g = fresh_product(grad.mT, x)
        else:
            g = torch.mm(grad.mT, x, out=workspace.take(layer.shape, x.dtype))
        if need_weight:
            dweight = g if takes_weight else fresh_like(g, dtypes[0])
        if need_logits:
            dlogits = g if takes_logits else fresh_like(g, dtypes[1])
        _C.weight_grad(layer, g, bits, (dweight, dlogits), torch.get_num_threads(), kl)
    return dx, dweight, dlogits


def backward_by_panels(
    layer: _C.Masked, grad: Tensor, x: Tensor, dx: Tensor | None, to: Targets, add: bool, kl: KLTerm | None
) -> None:
    """Write dx [M, K], dweight and dlogits of grad [M, N] and x [M, K], as :func:`backward`."""
    target, threads = _target(to, x.dtype), torch.get_num_threads()
    n, k = layer.shape
    for rows in workspace.panels(n, k, x.dtype):
        part, bits = (rows.start, rows.stop - rows.start), None
        if dx is not None:
            w, bits = write_masked_weight(layer, (part[1], k), x.dtype, to[0] is not None, part)
            torch.addmm(dx, grad[:, rows], w, beta=int(rows.start > 0), out=dx)
        if target is not None:
            direct = target.dtype == x.dtype and not add
            g = target[rows] if direct else workspace.take((part[1], k), x.dtype)
            torch.mm(grad[:, rows].mT, x, out=g)
            _C.weight_grad(layer, g, bits, to, threads, kl, add, part)


def _target(to: Targets, dtype: torch.dtype) -> Tensor | None:
    """Return the gradient whose memory can hold dL/d(z * weight), of ``dtype``; if none can, one that is needed."""
    dweight, dlogits = to
    return dweight if dlogits is None or (dweight is not None and dweight.dtype == dtype) else dlogits
