"""The mask that multiplies a weight, and its derivative with respect to the logit, for every estimator.

===========================  ======================  ===============================
estimator                    mask z                  slope used for dz / dlogit
===========================  ======================  ===============================
straight_through             hard m = [u < T]        sigmoid'(logit)
concrete                     soft s(logit, u)        s (1 - s) / temperature
straight_through_concrete    hard m                  s (1 - s) / temperature
expected                     sigmoid(logit)          sigmoid'(logit)
hard_concrete                clamp(1.2 s - 0.1)      1.2 s (1 - s) / temperature
===========================  ======================  ===============================

Here ``s = sigmoid((logit - logit(v)) / temperature)`` and ``v = ((u & 0x7FFF) + 0.5) / 32768``. This is the binary
concrete distribution of Maddison, Mnih and Teh 2017 (arXiv 1611.00712). The slope of the hard concrete mask is 0 where
the mask is clamped (Louizos, Welling and Kingma 2018, arXiv 1712.01312).
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

from .tiles import load_tile

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # the interpreter knows neither libdevice nor assembly


@triton.jit
def _exp_minus(x):
    # exp(-x). This function and those below ignore subnormals: to handle them would triple the instructions.
    if INTERPRETED:
        return tl.exp(-x)
    else:
        return libdevice.exp2(x * -1.4426950408889634)


@triton.jit
def _log(x):
    if INTERPRETED:
        return tl.log(x)
    else:
        return libdevice.fast_logf(x)


@triton.jit
def _divide(x, y):
    if INTERPRETED:
        return x / y
    else:
        return x * tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [y], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def sigmoid(x):
    """Return the logistic function in fp32."""
    return _divide(1.0, 1.0 + _exp_minus(x))


@triton.jit
def sigmoid_slope(x):
    """Return the derivative of the logistic function in fp32, without the cancellation of ``s (1 - s)``.

    With ``e = exp(-x)`` and ``r = 1 / (1 + e)`` it is ``e r r``. The compiler computes e and r once for this function
    and :func:`sigmoid`. At 2^126 the slope is no longer a normal number: e is bounded there, since inf times 0 is NaN.
    """
    e = _exp_minus(x)
    r = _divide(1.0, 1.0 + e)
    return tl.minimum(e, 8.507059e37) * r * r


@triton.jit
def raised_threshold(logit):
    """Return ``256 + T / 32768`` in fp32, whose last 15 bits are the threshold T of an fp32 logit."""
    # An ulp of 256 is 2^-15, so the sum is rounded to the nearest threshold.
    return tl.minimum(tl.maximum(sigmoid(logit), 1.0 / 32768), 32767.0 / 32768) + 256.0


@triton.jit
def threshold(logit):
    """Return the threshold 1 .. 32767 (uint32) of an fp32 logit, within 1 of the reference; NaN gives 1 on a GPU."""
    return raised_threshold(logit).to(tl.uint32, bitcast=True) & 0x7FFF


@triton.jit
def keep(logit, u):
    """Return the hard mask ``(u & 0x7FFF) < T``; 256 is added to both sides in fp32, which is exact."""
    return ((u & 0x7FFF) | 0x43800000).to(tl.float32, bitcast=True) < raised_threshold(logit)


@triton.jit
def relaxed(logit, u, temperature):
    """Return the number whose sigmoid is the soft mask of the 16 random bits ``u``."""
    v = (u & 0x7FFF).to(tl.float32)
    return (logit - _log(_divide(v + 0.5, 32767.5 - v))) * (1.0 / temperature)


@triton.jit
def stretched(logit, u, temperature):
    """Return the hard concrete mask before it is clamped to [0, 1]."""
    return sigmoid(relaxed(logit, u, temperature)) * 1.2 - 0.1


@triton.constexpr_function
def hard(estimator):
    """Return True if the mask is hard: 0 or 1."""
    return estimator.startswith("straight_through")


@triton.jit
def masked(w, logit, u, temperature, ESTIMATOR: tl.constexpr):
    """Return ``z * w`` in fp32."""
    if ESTIMATOR == "expected":
        return w * sigmoid(logit)
    elif ESTIMATOR == "concrete":
        return w * sigmoid(relaxed(logit, u, temperature))
    elif ESTIMATOR == "hard_concrete":
        return w * tl.minimum(tl.maximum(stretched(logit, u, temperature), 0.0), 1.0)
    else:
        return tl.where(keep(logit, u), w, 0.0)


@triton.jit
def pull(logit, prior_ptr, kl_grad_ptr, at, inside):
    """Return kl_grad times dKL(mask || prior's mask) / dlogit, in fp32. ``at`` are the offsets of the prior."""
    prior = load_tile(prior_ptr + at, inside).to(tl.float32)
    s = sigmoid_slope(logit) * tl.load(kl_grad_ptr).to(tl.float32)
    return tl.where(s != 0.0, (logit - prior) * s, 0.0)  # the logit may be infinite where the slope is 0


@triton.jit
def slope(logit, u, temperature, ESTIMATOR: tl.constexpr):
    """Return ``dz / dlogit`` in fp32."""
    if ESTIMATOR == "straight_through" or ESTIMATOR == "expected":
        return sigmoid_slope(logit)
    elif ESTIMATOR == "hard_concrete":
        z = stretched(logit, u, temperature)
        inside = sigmoid_slope(relaxed(logit, u, temperature)) * (1.2 / temperature)
        return tl.where((z > 0.0) & (z < 1.0), inside, 0.0)
    else:
        return sigmoid_slope(relaxed(logit, u, temperature)) * (1.0 / temperature)
