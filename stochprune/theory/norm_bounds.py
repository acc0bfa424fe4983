"""Norm-based bounds on the risk, without constants and some logarithms, so that they can be compared.

Each function returns an upper bound on the risk minus the margin loss, up to a factor that its paper does not specify.
If the value is far above 1, the bound is vacuous for any factor. Networks are those of
:mod:`stochprune.theory.compression`; ``radius`` is the largest norm of an input, ``margin`` the margin of the outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stochprune.theory.compression import Weights
from stochprune.theory.spectral import norm_upper


@dataclass(frozen=True)
class Norms:
    """Norms of the weight A [out, in] of one layer.

    Attributes:
        spectral: a proved upper bound on |A|_2 (:func:`stochprune.theory.spectral.norm_upper`).
        frobenius: |A|_F.
        two_one: |A^T|_{2,1}, the sum over outputs of the norms of their incoming weights.
        width: the larger of out and in.
        largest_row: the largest norm of the incoming weights of an output.
        inputs: the largest number of inputs of an output whose weight is not 0.
    """

    spectral: float
    frobenius: float
    two_one: float
    width: int
    largest_row: float
    inputs: int

    @classmethod
    def of(cls, weight: Tensor) -> Norms:
        a = weight.double().numpy()
        rows = np.linalg.norm(a, axis=1)
        return cls(
            spectral=norm_upper(a),
            frobenius=float(np.linalg.norm(a)),
            two_one=float(rows.sum()),
            width=max(a.shape),
            largest_row=float(rows.max()),
            inputs=int(np.count_nonzero(a, axis=1).max()),
        )


def neyshabur_2015(norms: list[Norms], radius: float, margin: float, examples: int) -> float:
    """Return radius 2^L prod_l |A_l|_F / (margin sqrt(n)).

    Neyshabur, Tomioka and Srebro 2015, "Norm-based capacity control in neural networks" (arXiv 1503.00036).
    """
    product = math.prod(layer.frobenius for layer in norms)
    return radius * 2 ** len(norms) * product / (margin * math.sqrt(examples))


def bartlett_2017(norms: list[Norms], radius: float, margin: float, examples: int) -> float:
    """Return radius ln(width) prod_l |A_l|_2 (sum_l (|A_l^T|_{2,1} / |A_l|_2)^(2/3))^(3/2) / (margin sqrt(n)).

    Bartlett, Foster and Telgarsky 2017, "Spectrally-normalized margin bounds" (arXiv 1706.08498), with reference
    matrices 0.
    """
    product = math.prod(layer.spectral for layer in norms)
    spread = sum((layer.two_one / layer.spectral) ** (2 / 3) for layer in norms) ** 1.5
    width = max(layer.width for layer in norms)
    return radius * math.log(width) * product * spread / (margin * math.sqrt(examples))


def neyshabur_2017(norms: list[Norms], radius: float, margin: float, examples: int) -> float:
    """Return sqrt(radius^2 L^2 width ln(L width) prod_l |A_l|_2^2 sum_l |A_l|_F^2 / |A_l|_2^2 / (margin^2 n)).

    Neyshabur, Bhojanapalli and Srebro 2018, "A PAC-Bayesian approach to spectrally-normalized margin bounds" (arXiv
    1707.09564).
    """
    depth, width = len(norms), max(layer.width for layer in norms)
    product = math.prod(layer.spectral for layer in norms)
    ranks = sum((layer.frobenius / layer.spectral) ** 2 for layer in norms)
    return radius * depth * product * math.sqrt(width * math.log(depth * width) * ranks / examples) / margin


def galanti_2023(norms: list[Norms], radius: float, margin: float, examples: int) -> float:
    """Return radius (1 + sqrt(2 L ln 2)) |A_L|_F prod_{l<L} rho_l prod_{l>1} sqrt(k_l) / (margin sqrt(n)).

    rho_l is the largest row norm of A_l and k_l the largest number of inputs of a unit of layer l. So pruning lowers
    the bound, even if the norms stay. After Galanti, Xu, Galanti and Poggio 2023, "Norm-based generalization bounds for
    sparse neural networks" (arXiv 2301.12033), which we know from its abstract. The formula is our reading: we derived
    it by the peeling of Golowich, Rakhlin and Shamir 2018 (arXiv 1712.06541, theorem 1), one unit at a time.

    For a unit w with |w| <= rho and at most k inputs that are not 0, and vectors v_i of the layer below,
    |<w, sum_i s_i v_i>| <= rho sqrt(k) max_j |sum_i s_i v_ij|. The class of functions is the same for every unit j
    below, because its k inputs may be any. So the maximum over j costs nothing, and contraction by ReLU costs a factor
    of 2 inside exp; L layers give the root. The mask may depend on the examples, if its k_l do not. For one output; the
    union over the k_l and the norms, and the factor of several classes, are left out.
    """
    product = math.prod(layer.largest_row for layer in norms[:-1]) * norms[-1].frobenius
    spread = math.prod(math.sqrt(layer.inputs) for layer in norms[1:])
    depth = 1 + math.sqrt(2 * len(norms) * math.log(2))
    return radius * depth * product * spread / (margin * math.sqrt(examples))


@dataclass(frozen=True)
class Cushions:
    """Noise sensitivities of Arora, Ge, Neyshabur and Zhang 2018 (arXiv 1802.05296), on some examples.

    Attributes:
        layer: for each layer the minimum of |A phi(x)| / (|A|_F |phi(x)|), where x is its input.
        interlayer: for each layer the minimum of 1 / sqrt(its dimension) and of |J x| / (|J|_F |x|) over all later
            outputs J x, where x is its output and J the Jacobian from there.
        contraction: the largest |x| / |phi(x)| of a hidden output.
        largest_output: the largest |f(x)|.
    """

    layer: list[float]
    interlayer: list[float]
    contraction: float
    largest_output: float


def cushions(weights: Weights, x: Tensor) -> Cushions:
    """Measure the cushions on the examples x [n, ...]. A minimum over some of the examples is optimistic."""
    matrices = list(weights.values())
    layer = [math.inf] * len(matrices)
    interlayer = [1 / math.sqrt(len(a)) for a in matrices]
    contraction, largest = 1.0, 0.0
    for example in x.flatten(1).to(matrices[0].dtype):
        hidden = example
        points: list[Tensor] = []
        jacobians: list[Tensor] = []  # of this layer's output with respect to that of layer i
        for j, a in enumerate(matrices):
            active = hidden > 0 if j else torch.ones_like(hidden, dtype=torch.bool)
            used, step = hidden * active, a * active  # phi(x), and the Jacobian of this layer
            jacobians = [step @ jacobian for jacobian in jacobians] + ([step] if j else [])
            if j:
                contraction = max(contraction, _ratio(hidden, used))
            hidden = a @ used
            layer[j] = min(layer[j], _ratio(hidden, used) / float(a.norm()))
            for i, jacobian in enumerate(jacobians):
                interlayer[i] = min(interlayer[i], _ratio(hidden, points[i]) / float(jacobian.norm()))
            points.append(hidden)
        largest = max(largest, float(hidden.norm()))
    return Cushions(layer, interlayer, contraction, largest)


def _ratio(a: Tensor, b: Tensor) -> float:
    return float(a.norm() / b.norm())


def arora_2018(found: Cushions, margin: float, examples: int) -> float:
    """Return c L max|f(x)| sqrt(sum_l 1 / (mu_l mu_l->)^2) / (margin sqrt(n)), c the activation contraction.

    Arora, Ge, Neyshabur and Zhang 2018, "Stronger generalization bounds for deep nets via a compression approach"
    (arXiv 1802.05296), theorem 4.1.
    """
    total = sum(1 / (mu * inter) ** 2 for mu, inter in zip(found.layer, found.interlayer, strict=True))
    scale = found.contraction * len(found.layer) * found.largest_output
    return scale * math.sqrt(total / examples) / margin
