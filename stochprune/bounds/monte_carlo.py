"""Bounds on the posterior's empirical risk, from the losses of sampled networks.

Each value is the loss, in [0, 1], of one network sampled independently from the posterior. The samples are independent
of the posterior's training. Both bounds hold with probability at least 1 - delta over the samples. Choose one of the
two before the losses are seen. ``choices`` is the number of posteriors that are certified and compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from stochprune.bounds import checks
from stochprune.bounds.checks import check
from stochprune.bounds.kl import kl_inverse

_SLACK = 1e-9
"""Added to the logarithm that the wealth must reach; larger than the rounding of a sum of 2^32 logarithms."""


def monte_carlo(mean: float, draws: int, delta: float, *, choices: int = 1) -> float:
    """Return kl^-1(mean | ln(2 choices / delta) / draws), for a number of draws that was fixed beforehand.

    Langford and Caruana 2001, "(Not) bounding the true error"; as in Perez-Ortiz et al. 2021 (arXiv 2007.12911).

    Raises:
        ValueError: an argument outside its range, see :mod:`stochprune.bounds.checks`.
    """
    mean, draws, delta, choices = check("monte_carlo", mean=mean, draws=draws, delta=delta, choices=choices)
    return kl_inverse(mean, math.log(2 * choices / delta) / draws)


def betting(
    values: np.ndarray | Tensor | Sequence[float], delta: float, *, choices: int = 1, planned: int | None = None
) -> float:
    """Return an upper bound on the mean by betting, tight if the values vary little.

    Start with a wealth of 1 and bet the share lam_t of it that the next value is below mu. The final wealth is
    prod_t (1 + lam_t (mu - X_t)). If the mean is mu or more, the wealth is a nonnegative supermartingale, which
    reaches 1 / delta at any time with probability at most delta (Ville 1939). The bound is the smallest mu at which the
    wealth reaches it. It holds at all times at once, so you may watch a run and stop it. The bets lam_t in [0, 1]
    depend on earlier values only:
    sqrt(2 ln(1 / delta) / (planned * variance)), the hedged capital bets of Waudby-Smith and Ramdas 2024,
    "Estimating means of bounded random variables by betting" (arXiv 2010.09686), equation 26, one-sided. The wealth
    rises in mu, so the bound is found by bisection; the upper end is returned.

    Args:
        values: [T] in [0, 1], in the order of the draws.
        planned: the number of draws for which the bets are tuned; default T. It must not depend on the values.

    Raises:
        ValueError: no values, a value that is NaN or outside [0, 1], or an argument outside its range, see
            :mod:`stochprune.bounds.checks`.
    """
    x = checks.losses("betting", values)
    planned = len(x) if planned is None else planned
    delta, choices, planned = check("betting", delta=delta, choices=choices, planned=planned)
    target = math.log(choices / delta) + _SLACK
    count = np.arange(1, len(x) + 1)
    mean = (0.5 + np.cumsum(x)) / (count + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (count + 1)
    before = np.concatenate(([0.25], variance[:-1]))
    bets = np.minimum(1.0, np.sqrt(2 * target / (planned * before)))  # [T]
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        with np.errstate(divide="ignore"):
            won = np.log1p(bets * (middle - x)).sum() >= target
        low, high = (low, middle) if won else (middle, high)
    return high
