"""What a weight is multiplied with, and how that depends on its logit, for every estimator.

===========================  ======================  ===============================
estimator                    mask z                  slope used for dz / dlogit
===========================  ======================  ===============================
straight_through             hard m = [u < T]        sigmoid'(logit)
concrete                     soft s(logit, u)        s (1 - s) / temperature
straight_through_concrete    hard m                  s (1 - s) / temperature
expected                     sigmoid(logit)          sigmoid'(logit)
hard_concrete                clamp(1.2 s - 0.1)      1.2 s (1 - s) / temperature
===========================  ======================  ===============================

with ``s = sigmoid((logit - logit(v)) / temperature)`` and ``v = ((u & 0x7FFF) + 0.5) / 32768``: the binary
concrete distribution of Maddison, Mnih and Teh 2017 (arXiv 1611.00712). The hard concrete mask is clamped to
[0, 1], and its slope is zero there (Louizos, Welling and Kingma 2018, arXiv 1712.01312).
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # the interpreter knows neither libdevice nor assembly


@triton.jit
def _exp_minus(x):
    # exp(-x). Here and below without care for subnormals, which would triple the instructions.
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
    """Logistic function in fp32."""
    return _divide(1.0, 1.0 + _exp_minus(x))


@triton.jit
def sigmoid_slope(x):
    """Derivative of the logistic function in fp32, without the cancellation of ``s (1 - s)``."""
    e = _exp_minus(tl.abs(x))
    r = _divide(1.0, 1.0 + e)
    return e * r * r


@triton.jit
def _raised_threshold(logit):
    # 256 + T / 32768: an ulp of 256 is 2^-15, so the sum rounds to the nearest threshold and ends in its bits.
    return tl.minimum(tl.maximum(sigmoid(logit), 1.0 / 32768), 32767.0 / 32768) + 256.0


@triton.jit
def threshold(logit):
    """Keep threshold 1 .. 32767 (uint32) of an fp32 logit; within 1 of the reference; on a GPU NaN gives 1."""
    return _raised_threshold(logit).to(tl.uint32, bitcast=True) & 0x7FFF


@triton.jit
def keep(logit, u):
    """The hard mask ``(u & 0x7FFF) < T``, both sides raised by 256 in fp32, which is exact."""
    return ((u & 0x7FFF) | 0x43800000).to(tl.float32, bitcast=True) < _raised_threshold(logit)


@triton.jit
def relaxed(logit, u, temperature):
    """The argument whose sigmoid is the soft mask of the 16 random bits ``u``."""
    v = (u & 0x7FFF).to(tl.float32)
    return (logit - _log(_divide(v + 0.5, 32767.5 - v))) * (1.0 / temperature)


@triton.jit
def stretched(logit, u, temperature):
    """The hard concrete mask before it is clamped to [0, 1]."""
    return sigmoid(relaxed(logit, u, temperature)) * 1.2 - 0.1


@triton.jit
def masked(w, logit, u, temperature, ESTIMATOR: tl.constexpr):
    """``z * w`` in fp32."""
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
    """The gradient of kl_grad * KL(mask || prior's mask) for the logit, in fp32; ``at`` are the prior's offsets."""
    prior = tl.load(prior_ptr + at, mask=inside, other=0.0).to(tl.float32)
    s = sigmoid_slope(logit) * tl.load(kl_grad_ptr).to(tl.float32)
    return tl.where(s != 0.0, (logit - prior) * s, 0.0)  # where the slope is 0 the logit may be infinite


@triton.jit
def slope(logit, u, temperature, ESTIMATOR: tl.constexpr):
    """``dz / dlogit`` in fp32."""
    if ESTIMATOR == "straight_through" or ESTIMATOR == "expected":
        return sigmoid_slope(logit)
    elif ESTIMATOR == "hard_concrete":
        z = stretched(logit, u, temperature)
        inside = sigmoid_slope(relaxed(logit, u, temperature)) * (1.2 / temperature)
        return tl.where((z > 0.0) & (z < 1.0), inside, 0.0)
    else:
        return sigmoid_slope(relaxed(logit, u, temperature)) * (1.0 / temperature)
