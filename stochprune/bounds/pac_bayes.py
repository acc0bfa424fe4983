"""PAC-Bayes bounds on the risk R of a stochastic predictor.

All of them hold with probability at least 1 - delta over the m examples, for all posteriors Q at once, if

- the m examples are independent and identically distributed, and the loss lies in [0, 1];
- the prior P does not depend on them (it may depend on other data);
- ``risk`` is the mean over these m examples of the expected loss under Q (see :mod:`stochprune.bounds.monte_carlo`
  if it is only estimated), and ``kl`` is KL(Q || P) in nats.

``choices`` is a union bound: the number of priors, or of values of a constant such as Catoni's beta, among which one
was chosen after looking at the examples. delta is divided by it. The choice of Q costs nothing.

Arguments are numbers. ``risk`` and ``kl`` may also be tensors of one element, to be differentiated. A result above 1 is
returned unchanged: the bound is then vacuous. Every function raises ``ValueError`` for an argument outside its range
(:mod:`stochprune.bounds.checks`): ``m`` and ``choices`` are integers of at least 1, ``delta`` lies strictly between 0
and 1, ``risk`` in [0, 1], ``kl`` at or above 0; NaN is never allowed.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

from stochprune.bounds.checks import check
from stochprune.bounds.kl import kl_inverse

Number = TypeVar("Number", float, Tensor)


def complexity(kl: Number, m: int, delta: float, choices: int = 1) -> Number:
    """Return B = (KL + ln(2 sqrt(m) choices / delta)) / m, the right-hand side of Maurer's inequality.

    Raises:
        ValueError: an argument outside its range, see :mod:`stochprune.bounds.checks`.
    """
    kl, m, delta, choices = check("complexity", kl=kl, m=m, delta=delta, choices=choices)
    return _complexity(kl, m, delta, choices)


def _complexity(kl: Number, m: int, delta: float, choices: int) -> Number:
    return (kl + math.log(2 * math.sqrt(m) * choices / delta)) / m


def maurer(risk: Number, kl: Number, m: int, delta: float, *, choices: int = 1) -> Number:
    """Return the bound R <= kl^-1(risk | B): the PAC-Bayes-kl inequality, the tightest here, used for certificates.

    Seeger 2002, "PAC-Bayesian generalisation error bounds for Gaussian process classification"; with sqrt(m) Maurer
    2004, "A note on the PAC-Bayesian theorem" (for m >= 8; smaller m were checked by computation).
    """
    risk, kl, m, delta, choices = check("maurer", risk=risk, kl=kl, m=m, delta=delta, choices=choices)
    return kl_inverse(risk, _complexity(kl, m, delta, choices))


def mcallester(risk: Number, kl: Number, m: int, delta: float, *, choices: int = 1) -> Number:
    """Return the classic bound R <= risk + sqrt(B / 2).

    McAllester 1999, "PAC-Bayesian model averaging", with Maurer's constant: Pinsker's inequality applied to
    :func:`maurer`.
    """
    risk, kl, m, delta, choices = check("mcallester", risk=risk, kl=kl, m=m, delta=delta, choices=choices)
    return risk + (_complexity(kl, m, delta, choices) / 2) ** 0.5


def quadratic(risk: Number, kl: Number, m: int, delta: float, *, choices: int = 1) -> Number:
    """Return the bound R <= (sqrt(risk + B / 2) + sqrt(B / 2))^2 = risk + B + sqrt(B (B + 2 risk)).

    Rivasplata, Tankasali and Szepesvari 2019, "PAC-Bayes with backprop" (arXiv 1908.07380); Perez-Ortiz et al. 2021
    (arXiv 2007.12911), equation 12. From :func:`maurer` by kl(q || p) >= (p - q)^2 / (2 p).
    """
    risk, kl, m, delta, choices = check("quadratic", risk=risk, kl=kl, m=m, delta=delta, choices=choices)
    half = _complexity(kl, m, delta, choices) / 2
    root = (risk + half) ** 0.5 + half**0.5
    return root * root  # ** 2 raises an error where the result is beyond float64


def tolstikhin_seldin(risk: Number, kl: Number, m: int, delta: float, *, choices: int = 1) -> Number:
    """Return the bound R <= risk + sqrt(2 risk B) + 2 B.

    McAllester 2003, "Simplified PAC-Bayesian margin bounds"; Tolstikhin and Seldin 2013, "PAC-Bayes-empirical-Bernstein
    inequality", equation 3. A relaxation of :func:`quadratic`, never tighter than it.
    """
    risk, kl, m, delta, choices = check("tolstikhin_seldin", risk=risk, kl=kl, m=m, delta=delta, choices=choices)
    b = _complexity(kl, m, delta, choices)
    return risk + (2 * risk * b if b < math.inf else b) ** 0.5 + 2 * b  # not 0 times infinity


def lam(risk: Number, kl: Number, m: int, delta: float, lam: float, *, choices: int = 1) -> Number:
    """Return the bound R <= risk / (1 - lam / 2) + B / (lam (1 - lam / 2)), valid for all lam in (0, 2) at once.

    Thiemann, Igel, Wintenberger and Seldin 2017, "A strongly quasiconvex PAC-Bayesian bound" (arXiv 1608.05610),
    theorem 3. At :func:`optimal_lambda` it equals :func:`quadratic`. For a fixed lam it is convex in Q, so Q and lam
    can be minimised alternately.
    """
    risk, kl, m, delta, choices, lam = check("lam", risk=risk, kl=kl, m=m, delta=delta, choices=choices, lam=lam)
    return risk / (1 - lam / 2) + _complexity(kl, m, delta, choices) / (lam * (1 - lam / 2))


def optimal_lambda(risk: float, kl: float, m: int, delta: float, *, choices: int = 1) -> float:
    """Return the lam that minimises :func:`lam`: 2 / (sqrt(2 risk / B + 1) + 1)."""
    risk, kl, m, delta, choices = check("optimal_lambda", risk=risk, kl=kl, m=m, delta=delta, choices=choices)
    return 2 / (math.sqrt(2 * risk / _complexity(kl, m, delta, choices) + 1) + 1)


def catoni(risk: Number, kl: Number, m: int, delta: float, beta: float, *, choices: int = 1) -> Number:
    """Return the bound R <= (1 - exp(-beta risk - (KL + ln(choices / delta)) / m)) / (1 - exp(-beta)).

    Catoni 2007, "PAC-Bayesian supervised classification", theorem 1.2.6; Germain et al. 2009. It holds for one beta
    that was fixed beforehand. If beta is chosen from a grid, ``choices`` is the size of the grid.
    """
    risk, kl, m, delta, choices, beta = check("catoni", risk=risk, kl=kl, m=m, delta=delta, choices=choices, beta=beta)
    exponent = -beta * risk - (kl + math.log(choices / delta)) / m
    shrunk = torch.expm1(exponent) if isinstance(exponent, Tensor) else math.expm1(exponent)
    return shrunk / math.expm1(-beta)


def chernoff(risk: float, m: int, delta: float, *, choices: int = 1) -> float:
    """Return R <= kl^-1(risk | ln(choices / delta) / m), for ONE predictor fixed before the m examples were seen.

    Langford 2005, "Tutorial on practical prediction theory for classification", theorem 3.3 in the relative-entropy
    form. It is a control: a prior is such a predictor, and its bound needs no KL and no sqrt(m).
    """
    risk, m, delta, choices = check("chernoff", risk=risk, m=m, delta=delta, choices=choices)
    return kl_inverse(risk, math.log(choices / delta) / m)
