"""Checks of stochastic linear layers from outside: any implementation, with any random generator.

The first rows of x are the unit vectors, so the same pass that is checked shows the weights that it sampled. Then its
other outputs and all gradients have a closed form. With G the gradient of the sampled weights (``grad^T x`` of a linear
layer), straight-through gradients are ``G * m`` for the weight and ``G * weight * q (1 - q)`` for the logits; that of x
is the one of a dense layer with the sampled weights (Bengio et al. 2013).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest difference from the closed form in float64, in units of the largest value of the tensor."""
DEVIATIONS = 6.0
"""Standard deviations by which a mean over sampled numbers may miss; 2e-9 of right samplers do."""


@dataclasses.dataclass(frozen=True)
class Product:
    """The function of a layer, given its weights.

    Attributes:
        apply: maps x and the weights to y.
        shown: maps x, which begins with unit inputs, and y to the weights; y is linear in them.
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    shown: Callable[[Tensor, Tensor], Tensor]


Through = Callable[[Tensor], Tensor]
LINEAR = Product(F.linear, lambda x, y: y[: x.shape[1]].T)
"""x [K + B, K], whose first K rows are the unit matrix, weights [N, K], y [K + B, N]."""


@dataclasses.dataclass(frozen=True)
class Pass:
    """One forward and backward pass of a layer whose input begins with unit inputs.

    Attributes:
        x: the input.
        y: the output, without the bias.
        grad: the gradient of y, in its shape.
        grads: by the name of a tensor: ``x`` unless it is integers, and those that are trained.
        product: of the layer.
        weights: those of the pass, of a layer whose output does not show them.
    """

    x: Tensor
    y: Tensor
    grad: Tensor
    grads: Mapping[str, Tensor]
    product: Product = LINEAR
    weights: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the layer's products."""
        return self.grad.dtype

    @property
    def sampled(self) -> Tensor:
        """The weights of the pass, float64."""
        return (self.product.shown(self.x, self.y) if self.weights is None else self.weights).double()


def probe(rows: int, cols: int, tokens: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return x [cols + tokens, cols] that begins with the unit vectors, and a gradient [cols + tokens, rows]."""
    numbers = torch.Generator().manual_seed(1)
    x = torch.cat([torch.eye(cols), torch.randn(tokens, cols, generator=numbers)])
    grad = torch.randn(cols + tokens, rows, generator=numbers)
    return x.to(device, dtype), grad.to(device, dtype)


def bernoulli(weight: Tensor, logits: Tensor, one: Pass, other: Pass) -> str | None:
    """Return what is wrong with a layer of Bernoulli masks and straight-through gradients, or None.

    Args:
        weight: without zeros; its shape expands to that of the sampled weights, if a pass has several draws.
        logits: like ``weight``.
        one, other: two passes, which must have different masks.
    """
    keep = one.sampled != 0
    if wrong := shares(keep, logits):
        return wrong
    if torch.equal(keep, other.sampled != 0):
        return "two passes have the same mask"
    return near("weights", one.sampled, weight * keep, one.dtype) or masked(weight, logits, keep, one)


def shares(keep: Tensor, logits: Tensor) -> str | None:
    """Return what is wrong with a mask that keeps each weight with probability sigmoid(logits), or None."""
    q = torch.sigmoid(logits.double()).expand(keep.shape)
    for part in (q > 0.5, q <= 0.5):  # a mask that ignores its logits can be right on the whole
        off, spread = (keep.double() - q)[part].sum().item(), (q * (1 - q))[part].sum().sqrt().item()
        if abs(off) > DEVIATIONS * spread:
            kept = keep[part].double().mean()
            return f"keeps {kept:.4f} of the weights, the mean probability is {q[part].mean():.4f}"
    if dependent(keep, q):
        return "the masks of different weights depend on each other"
    return None


def dependent(keep: Tensor, q: Tensor) -> bool:
    """Return True if the entries of a mask are not independent within rows or within columns.

    With z the standardised entries, the square of a sum of n independent ones has the mean n, and the variance
    2 n^2 + n (E z^4 - 3). The mean of c such squares is compared with n, as a chi square of the same variance (Wilson
    and Hilferty 1931).

    Args:
        keep: the mask [..., K], bool.
        q: the probabilities, of the same shape.
    """
    variance = (q * (1 - q)).clamp(min=1e-3)
    z, fourth = (keep.double() - q) / variance.sqrt(), (1 / variance).mean().item()
    z = z.reshape(-1, z.shape[-1])
    for sums, n in ((z.sum(0), len(z)), (z.sum(1), z.shape[1])):
        spread = (2 + fourth / n) / len(sums) / 9  # of the cube root, which is nearly normal even for a few squares
        if n > 1 and (sums.square().mean() / n).item() > (1 - spread + DEVIATIONS * math.sqrt(spread)) ** 3:
            return True
    return False


def masked(weight: Tensor, logits: Tensor, keep: Tensor, found: Pass) -> str | None:
    """Return what is wrong with a pass whose mask is known, or None; its x may be any.

    Args:
        weight, logits: shapes that expand to that of ``keep``, the mask.
    """
    w, q = weight.double(), torch.sigmoid(logits.double())
    wrong, g = _products(w * keep, found)
    return wrong or _gradients({"weight": g * keep, "logits": g * w * q * (1 - q)}, found)


def inclusion(
    weight: Tensor, pattern: tuple[int, int], probabilities: Tensor, through: Through | None, one: Pass, other: Pass
) -> str | None:
    """Return what is wrong with a layer of masks that keep n of each m consecutive weights, or None.

    Args:
        weight: [N, K], without zeros.
        pattern: n and m.
        probabilities: [N, K], of keeping each weight.
        through: as in :func:`grouped`.
    """
    n, m = pattern
    keep = one.sampled != 0
    if wrong := near("weights", one.sampled, weight.double() * keep, one.dtype) or grouped(weight, keep, through, one):
        return wrong
    if not (keep.unflatten(1, (-1, m)).sum(-1) == n).all():
        return f"a group keeps another number than {n} of {m}"
    likely = (keep.double() - probabilities) * (probabilities > n / m)
    off = likely.unflatten(1, (-1, m)).sum((0, 1))  # by the position in a group
    if off.abs().max() > DEVIATIONS * math.sqrt(keep.numel() / m) / 2:
        return "the means of masks are not the probabilities"
    return "two passes have the same mask" if torch.equal(keep, other.sampled != 0) else None


def grouped(weight: Tensor, keep: Tensor, through: Through | None, found: Pass) -> str | None:
    """Return what is wrong with a pass whose mask is known, or None; its x may be any.

    Args:
        weight, keep: [N, K]; ``keep`` is the mask.
        through: from the gradient of the mask, [N, K], to that of the logits; None if there is no closed form.
    """
    w = weight.double()
    wrong, g = _products(w * keep, found)
    expected = {"weight": g * keep} | ({} if through is None else {"logits": through(g * w)})
    return wrong or _gradients(expected, found)


def largest(weight: Tensor, pattern: tuple[int, int], found: Pass) -> str | None:
    """Return what is wrong with a layer that keeps at most n of each m weights, and trains all of them, or None.

    The gradient of the sparse weights is the gradient of all weights (the straight-through estimate).
    """
    keep = found.sampled != 0
    wrong, g = _products(weight.double() * keep, found)
    if (keep.unflatten(1, (-1, pattern[1])).sum(-1) > pattern[0]).any():
        return f"a group keeps more than {pattern[0]} of {pattern[1]}"
    return wrong or _gradients({"weight": g}, found)


def gaussian(mu: Tensor, sigma: Tensor, slope: Tensor, one: Pass, other: Pass) -> str | None:
    """Return what is wrong with a layer of Gaussian weights, reparameterised (Kingma and Welling 2014), or None.

    Args:
        mu, sigma: of the weights.
        slope: derivative of sigma by its parameter rho.
    """
    e = (one.sampled - mu) / sigma
    wrong, g = _products(one.sampled, one)
    if wrong := wrong or standard("weights", e):
        return wrong
    if torch.equal(one.sampled, other.sampled):
        return "two passes have the same weights"
    return _gradients({"weight": g, "rho": g * e * slope}, one)


def local(mu: Tensor, sigma: Tensor, slope: Tensor, one: Pass, other: Pass) -> str | None:
    """Return what is wrong with a linear layer of Gaussian pre-activations, or None (Kingma, Salimans, Welling 2015).

    Args:
        mu, sigma, slope: [N, K], as for :func:`gaussian`.
    """
    x, grad, mean, std = one.x.double(), one.grad.double(), mu.double(), sigma.double()
    deviation = F.linear(x.square(), std.square()).sqrt()
    e = (one.y.double() - F.linear(x, mean)) / deviation
    if wrong := standard("pre-activations", e):
        return wrong
    if torch.equal(one.y, other.y):
        return "two passes have the same noise"
    variance = grad * e / (2 * deviation)  # the gradient of the variance
    dx = grad @ mean + 2 * x * (variance @ std.square())
    return _gradients({"x": dx, "weight": grad.T @ x, "rho": variance.T @ x.square() * 2 * std * slope}, one)


def standard(name: str, e: Tensor) -> str | None:
    """Return a text if numbers do not have the mean and the variance of a standard normal."""
    count = e.numel()
    mean, variance = e.mean().item(), e.var().item()
    if abs(mean) <= DEVIATIONS / math.sqrt(count) and abs(variance - 1) <= DEVIATIONS * math.sqrt(2 / count):
        return None
    return f"the standardised {name} have mean {mean:.3f} and variance {variance:.3f}"


def fixed(weight: Tensor, found: Pass) -> str | None:
    """Return what is wrong with a layer whose weights are known, or None; zeros are masked: they have no gradient."""
    wrong, g = _products(weight.double(), found)
    return wrong or _gradients({"weight": g * (weight != 0)}, found)


def _products(weight: Tensor, found: Pass) -> tuple[str | None, Tensor]:
    """Compare outputs and the gradient of x with those of a dense layer with these weights, float64.

    Returns:
        What is wrong, or None; and the gradient of the weights.
    """
    x = found.x.double().requires_grad_() if found.x.is_floating_point() else found.x
    w = weight.detach().requires_grad_()
    y = found.product.apply(x, w)
    given = {name: tensor for name, tensor in (("weight", w), ("x", x)) if tensor.requires_grad}
    grads = dict(zip(given, torch.autograd.grad(y, [*given.values()], found.grad.double()), strict=True))
    g = grads.pop("weight")
    return near("output", found.y, y.detach(), found.dtype) or _gradients(grads, found), g


def _gradients(expected: Mapping[str, Tensor], found: Pass) -> str | None:
    """Compare those gradients that a pass has; the draws of a tensor that serves several of them are added."""
    for name, grad in found.grads.items():
        if name in expected:
            wrong = near(f"gradient of {name}", grad, expected[name].sum_to_size(grad.shape), found.dtype)
            if wrong is not None:
                return wrong
    return None


def near(name: str, given: Tensor, expected: Tensor, dtype: torch.dtype, factor: float = 1.0) -> str | None:
    """Return a text if a tensor is further from the expected one, float64, than the dtype of products explains.

    Args:
        factor: of the tolerance, for what has more rounding than one product.
    """
    if given.shape != expected.shape:
        return f"{name} has the shape {tuple(given.shape)}, expected {tuple(expected.shape)}"
    error = (given.double() - expected).abs().max().item() / max(expected.abs().max().item(), 1e-30)
    return None if error <= factor * TOLERANCE[dtype] else f"{name} is off by {error:.1e} of its largest value"
