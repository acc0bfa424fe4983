"""ARM and DisARM: unbiased gradients of the expected loss for the logits, from pairs of antithetic masks.

Any loss of the masks will do, also one that is not differentiable; the price is two evaluations of it for one number to
weigh all the masks with, so that the variance grows with their count. For small networks, and as the reference that
biased estimators are measured against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from stochprune import rng
from stochprune.functional._checks import check_floating

ESTIMATORS = ("disarm", "arm")
Masks = dict[str, Tensor]


def antithetic_gradient(
    loss: Callable[[Masks], Tensor],
    logits: Mapping[str, Tensor],
    *,
    seed: int,
    draw: int,
    streams: Mapping[str, int],
    estimator: str = "disarm",
) -> Masks:
    """One unbiased estimate of the gradient of E[loss(masks)] for the logits.

    With the contract's uniform v of a weight and q its probability of keeping, the pair is ``b = [v < q]``, the mask
    of :func:`stochprune.keep_mask`, and ``b' = [1 - v < q]``. Of a weight's logit the estimate is

    - ``disarm``: ``(loss(b) - loss(b')) (b - b') max(q, 1 - q) / 2`` (Dong, Mnih and Tucker 2020, which is U2G of Yin,
      Ho, Yan, Qian and Zhou 2020);
    - ``arm``: ``(loss(b') - loss(b)) (v - 1/2)`` (Yin and Zhou 2019), of larger variance.

    q is the quantised T / 32768, the distribution that is sampled, and both are unbiased for exactly that: the gradient
    is ``q (1 - q) (E[loss | kept] - E[loss | pruned])``.

    Args:
        loss: from masks by name, bool like the logits, to a scalar. It is called twice, without gradients.
        logits: floating tensors by name; masks are addressed as of ``logits.flatten(1)``.
        seed, draw: the address; one draw.
        streams: the stream of every name.
        estimator: ``"disarm"`` or ``"arm"``.

    Returns:
        The estimate by name, like the logits.

    Raises:
        TypeError: logits that are not floating.
        ValueError: an unknown estimator, a name without stream, a loss that is not a finite scalar, an integer out of
            range.
    """
    op = "antithetic_gradient"
    if estimator not in ESTIMATORS:
        raise ValueError(f"{op}: unknown estimator {estimator!r}; known are: {', '.join(ESTIMATORS)}")
    check_floating(op, **logits)
    missing = sorted(set(logits) - set(streams))
    if missing:
        raise ValueError(f"{op}: no stream for {missing[0]!r}")
    levels, uniforms = {}, {}
    for name, tensor in logits.items():
        rows = tensor.reshape(len(tensor), -1) if tensor.dim() else tensor.reshape(1, 1)
        at = {"seed": seed, "draw": draw, "stream": streams[name]}
        u = rng.uniform16(*rows.shape, **at, device=tensor.device) & 0x7FFF
        levels[name] = rng.threshold_from_logits(tensor).to(torch.int32)
        uniforms[name] = u.view(tensor.shape)
    pair = {name: u < levels[name] for name, u in uniforms.items()}
    other = {name: rng.LEVELS - 1 - u < levels[name] for name, u in uniforms.items()}
    with torch.no_grad():
        gap = _scalar(op, loss(pair)) - _scalar(op, loss(other))
    out = {}
    for name, tensor in logits.items():
        if estimator == "disarm":
            q = levels[name].double() / rng.LEVELS
            weight = (pair[name].double() - other[name].double()) * torch.maximum(q, 1 - q) / 2
        else:
            weight = 0.5 - (uniforms[name].double() + 0.5) / rng.LEVELS
        out[name] = (gap * weight).to(tensor.dtype)
    return out


def _scalar(op: str, loss: Tensor) -> float:
    value = float(loss) if loss.numel() == 1 else float("nan")
    if value - value != 0:
        shown = f"shape {tuple(loss.shape)}" if loss.numel() != 1 else value
        raise ValueError(f"{op}: the loss must be a finite scalar, got {shown}")
    return value
