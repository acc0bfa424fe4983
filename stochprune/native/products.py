"""The products of a masked linear layer by torch, on its masked weights in the shared workspace.

Each comes in two forms: for some draws of a weight that fits the workspace, and for one draw of a larger weight, on
panels of its rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune import _C
from stochprune.address import KLTerm, Logits, Mask
from stochprune.native.masked import masked
from stochprune.native.workspace import workspace


def forward(x: Tensor, weight: Tensor, logits: Logits, bias: Tensor | None, mask: Mask, y: Tensor) -> None:
    """y [D, M, N] = x [D, M, K] (z * weight)^T + bias."""
    w = workspace.take((x.shape[0], *weight.shape), x.dtype)
    _C.masked_weight(masked(weight, logits, mask), w, None, torch.get_num_threads())
    if bias is None:
        torch.bmm(x, w.mT, out=y)
    else:
        torch.baddbmm(bias, x, w.mT, out=y)


def forward_of_one(x: Tensor, weight: Tensor, logits: Logits, bias: Tensor | None, mask: Mask) -> Tensor:
    """y [M, N] of x [M, K], as :func:`forward`: fewer calls, which are most of the time of a small layer."""
    w = workspace.take(tuple(weight.shape), x.dtype)
    _C.masked_weight(masked(weight, logits, mask), w, None, torch.get_num_threads())
    return torch.mm(x, w.mT) if bias is None else torch.addmm(bias, x, w.mT)


def forward_by_panels(x: Tensor, weight: Tensor, logits: Logits, bias: Tensor | None, mask: Mask, y: Tensor) -> None:
    """As :func:`forward`, of one draw."""
    layer, out = masked(weight, logits, mask), y[0]
    n, k = weight.shape
    for rows in workspace.panels(n, k, x.dtype):
        part = rows.start, rows.stop - rows.start
        w = workspace.take((part[1], k), x.dtype)
        _C.masked_weight(layer, w, None, torch.get_num_threads(), part)
        if bias is None:
            torch.mm(x[0], w.mT, out=out[:, rows])
        else:
            torch.addmm(bias[rows], x[0], w.mT, out=out[:, rows])


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Logits,
    mask: Mask,
    dx: Tensor | None,
    dweight: Tensor | None,
    dlogits: Tensor | None,
    add: bool,
    kl: KLTerm | None,
) -> None:
    """dx [D, M, K], dweight and dlogits [N, K] from grad [D, M, N] and x [D, M, K]; what is None is not computed."""
    layer, threads, bits = masked(weight, logits, mask), torch.get_num_threads(), None
    shape = (x.shape[0], *weight.shape)
    if dx is not None:
        if dweight is not None and layer.groups:
            bits = torch.empty(shape[0] * shape[1], layer.groups, dtype=torch.int64)
        w = workspace.take(shape, x.dtype)
        _C.masked_weight(layer, w, bits, threads)
        torch.bmm(grad, w, out=dx)
    home = _home(dweight, dlogits, x.dtype)
    if home is not None:
        # dL/d(z * weight) goes straight into a gradient's own memory where dtypes agree and no sum is there.
        own = home.dtype == x.dtype and shape[0] == 1 and not add
        g = home.unsqueeze(0) if own else workspace.take(shape, x.dtype)
        torch.bmm(grad.mT, x, out=g)
        _through(layer, g, bits, dweight, dlogits, add, kl)


def backward_of_one(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Logits,
    mask: Mask,
    need_x: bool,
    dweight: Tensor | None,
    dlogits: Tensor | None,
    kl: KLTerm | None,
) -> Tensor | None:
    """Return dx [M, K] of grad [M, N] and x [M, K], and write the others, as :func:`backward`."""
    layer, threads, bits, dx = masked(weight, logits, mask), torch.get_num_threads(), None, None
    if need_x:
        if dweight is not None and layer.groups:
            bits = torch.empty(weight.shape[0], layer.groups, dtype=torch.int64)
        w = workspace.take(tuple(weight.shape), x.dtype)
        _C.masked_weight(layer, w, bits, threads)
        dx = torch.mm(grad, w)
    home = _home(dweight, dlogits, x.dtype)
    if home is not None:
        g = home if home.dtype == x.dtype else workspace.take(tuple(weight.shape), x.dtype)
        torch.mm(grad.mT, x, out=g)
        _through(layer, g, bits, dweight, dlogits, False, kl)
    return dx


def backward_by_panels(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Logits,
    mask: Mask,
    dx: Tensor | None,
    dweight: Tensor | None,
    dlogits: Tensor | None,
    add: bool,
    kl: KLTerm | None,
) -> None:
    """As :func:`backward`, of one draw."""
    layer, threads = masked(weight, logits, mask), torch.get_num_threads()
    home = _home(dweight, dlogits, x.dtype)
    n, k = weight.shape
    for rows in workspace.panels(n, k, x.dtype):
        part, bits = (rows.start, rows.stop - rows.start), None
        if dx is not None:
            if dweight is not None and layer.groups:
                bits = torch.empty(part[1], layer.groups, dtype=torch.int64)
            w = workspace.take((part[1], k), x.dtype)
            _C.masked_weight(layer, w, bits, threads, part)
            torch.addmm(dx[0], grad[0][:, rows], w, beta=int(rows.start > 0), out=dx[0])
        if home is not None:
            own = home.dtype == x.dtype and not add
            g = home[rows] if own else workspace.take((part[1], k), x.dtype)
            torch.mm(grad[0][:, rows].mT, x[0], out=g)
            _through(layer, g, bits, dweight, dlogits, add, kl, part)


def _home(dweight: Tensor | None, dlogits: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The gradient in whose memory dL/d(z * weight) may lie, or the one that is there."""
    return dweight if dlogits is None or (dweight is not None and dweight.dtype == dtype) else dlogits


def _through(
    layer: _C.Masked,
    grad: Tensor,
    bits: Tensor | None,
    dweight: Tensor | None,
    dlogits: Tensor | None,
    add: bool,
    kl: KLTerm | None,
    part: tuple[int, int] | None = None,
) -> None:
    """From grad = dL/d(z * weight), of the rows of ``part``, to dweight and dlogits; a hard mask is in ``bits``."""
    prior, scale = (None, 0.0) if kl is None else (kl.prior_logits, float(kl.grad))
    _C.weight_grad(
        layer,
        grad=grad,
        kept=bits,
        dweight=dweight,
        dlogits=dlogits,
        prior=prior,
        scale=scale,
        add=add,
        threads=torch.get_num_threads(),
        part=part,
    )
