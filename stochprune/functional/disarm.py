"""ARM and DisARM: unbiased gradients of the expected loss with respect to the logits, from pairs of antithetic masks.

The loss may be any function of the masks; it need not be differentiable. Each estimate evaluates it twice, and weighs
all masks by the one difference, so that the variance grows with the number of masks. Use it for small networks, or as
the reference for biased estimators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from stochprune import backends, rng
from stochprune.address import Logits
from stochprune.functional._checks import check_floating, named
from stochprune.functional.keep_mask import keep_mask

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
    row_offsets: Mapping[str, int] | None = None,
    col_offsets: Mapping[str, int] | None = None,
) -> Masks:
    """Return one unbiased estimate of the gradient of E[loss(masks)] with respect to the logits.

    Let v be the contract's uniform of a weight, and q the probability of keeping it. The pair of masks is
    ``b = [v < q]``, the mask of :func:`stochprune.keep_mask`, and ``b' = [1 - v < q]``. The estimate for the logit is

    - ``disarm``: ``(loss(b) - loss(b')) (b - b') max(q, 1 - q) / 2`` (Dong, Mnih and Tucker 2020, which is U2G of Yin,
      Ho, Yan, Qian and Zhou 2020);
    - ``arm``: ``(loss(b') - loss(b)) (v - 1/2)`` (Yin and Zhou 2019), with a larger variance.

    q is the quantised T / 32768 with which masks are sampled. Both estimates are unbiased for exactly this q: their
    expectation is ``q (1 - q) (E[loss | kept] - E[loss | pruned])``.

    Args:
        loss: a function of the masks by name (bool, in the shapes of the logits) that returns a scalar. It is called
            twice, without gradients.
        logits: floating tensors by name; their masks are those of the matrices ``logits.flatten(1)``.
        seed, draw: the address, with one draw.
        streams: the stream for each name.
        estimator: ``"disarm"`` or ``"arm"``.
        row_offsets, col_offsets: the global position of the first logit for each name; 0 for a name that is missing.

    Returns:
        The estimates by name, in the shapes and dtypes of the logits.

    Raises:
        TypeError: logits that are not floating, a loss that does not return a tensor.
        ValueError: an unknown estimator, a name without a stream, an offset for an unknown name, a loss that is not a
            finite scalar, an integer out of range.
    """
    op = "antithetic_gradient"
    if estimator not in ESTIMATORS:
        raise ValueError(f"{op}: unknown estimator {estimator!r}; known are: {', '.join(ESTIMATORS)}")
    first = {"row_offset": row_offsets or {}, "col_offset": col_offsets or {}}
    by_name = {"logits": logits, "streams": streams, **{f"{name}s": given for name, given in first.items()}}
    for name, given in by_name.items():
        if not isinstance(given, Mapping):
            raise TypeError(f"{op}: {name} must be a mapping by name, got {type(given).__name__}")
    for name, tensor in logits.items():
        check_floating(op, **{f"logits[{name!r}]": tensor})
    missing = sorted(set(logits) - set(streams))
    if missing:
        raise ValueError(f"{op}: no stream for {missing[0]!r}")
    for name, given in first.items():
        if unknown := sorted(set(given) - set(logits)):
            raise ValueError(f"{op}: {name}s has {unknown[0]!r}, which is not in logits")
    pair, other, weights = {}, {}, {}
    for name, tensor in logits.items():
        at = {"seed": seed, "draw": draw, "stream": streams[name]}
        at |= {offset: given.get(name, 0) for offset, given in first.items()}
        rows = tensor.detach().reshape(len(tensor) if tensor.dim() else 1, tensor.shape[1:].numel())
        rng.check_address(op, **at, rows=rows.shape[0], cols=rows.shape[1])
        levels = named(op, backends.resolve(rows).threshold_from_logits, Logits(rows))
        count = levels.to(torch.int32)
        kept = keep_mask(levels, **at)
        # 1 - v < q means v > 1 - q: the complement's threshold does not keep this weight.
        also = ~keep_mask(rng.LEVELS - count, **at)
        if estimator == "disarm":
            q = count.double() / rng.LEVELS
            weight = (kept.double() - also.double()) * torch.maximum(q, 1 - q) / 2
        else:
            u = rng.uniform16(*rows.shape, **at, device=tensor.device) & 0x7FFF
            weight = 0.5 - (u.double() + 0.5) / rng.LEVELS
        pair[name], other[name], weights[name] = (t.view(tensor.shape) for t in (kept, also, weight))
    with torch.no_grad():
        gap = _scalar(op, loss(pair)) - _scalar(op, loss(other))
    return {name: (gap * weight).to(logits[name].dtype) for name, weight in weights.items()}


def _scalar(op: str, loss: Tensor) -> float:
    if not isinstance(loss, Tensor):
        raise TypeError(f"{op}: the loss must give a scalar tensor, got {type(loss).__name__}")
    value = float(loss) if loss.numel() == 1 else float("nan")
    if value - value != 0:
        shown = f"shape {tuple(loss.shape)}" if loss.numel() != 1 else value
        raise ValueError(f"{op}: the loss must be a finite scalar, got {shown}")
    return value
