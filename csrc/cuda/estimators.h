// The mask that multiplies a weight, and its derivative with respect to the logit, for every estimator:
// kernels/estimators.py in C++.
#pragma once
#include <cmath>
#include <cstring>

#include "../common/philox.h"
#include "../common/types.h"
#include "device.h"

namespace stochprune::cuda {

// The device uses fast instructions, which flush subnormals. The host, for tests, uses the standard library.
STOCHPRUNE_DEVICE float exp_minus(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * -1.4426950408889634f));
  return y;
#else
  return std::exp(-x);
#endif
}

STOCHPRUNE_DEVICE float reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1 / x;
#endif
}

STOCHPRUNE_DEVICE float logarithm(float x) {
#ifdef __CUDA_ARCH__
  return __logf(x);
#else
  return std::log(x);
#endif
}

STOCHPRUNE_DEVICE float sigmoid(float x) { return reciprocal(1.0f + exp_minus(x)); }

// The derivative of the sigmoid, without the cancellation of s (1 - s). The compiler computes e and r once for both. At
// 2^126 the derivative is no longer a normal number: e is bounded there, since inf times 0 is NaN.
STOCHPRUNE_DEVICE float sigmoid_slope(float x) {
  const float e = exp_minus(x), r = reciprocal(1.0f + e);
  return std::fmin(e, 0x1p126f) * r * r;
}

// The keep threshold 1 .. 32767 of a logit; NaN gives 1. An ulp of 256 is 2^-15, so the sum is rounded to the nearest
// threshold.
STOCHPRUNE_DEVICE uint32_t threshold(float logit) {
  const float raised = std::fmin(std::fmax(sigmoid(logit), 1.0f / 32768), 32767.0f / 32768) + 256.0f;
  uint32_t bits;
  memcpy(&bits, &raised, sizeof bits);
  return bits & 0x7FFFu;
}

// The number whose sigmoid is the binary concrete mask of the random bits u.
STOCHPRUNE_DEVICE float relaxed(float logit, uint32_t u, float temperature) {
  const float v = float(u & 0x7FFFu);
  return (logit - logarithm((v + 0.5f) * reciprocal(32767.5f - v))) * reciprocal(temperature);
}

// The hard concrete mask before it is clamped to [0, 1].
STOCHPRUNE_DEVICE float stretched(float logit, uint32_t u, float temperature) {
  return sigmoid(relaxed(logit, u, temperature)) * 1.2f - 0.1f;
}

// z * w
template <Estimator E>
STOCHPRUNE_DEVICE float masked(float w, float logit, uint32_t u, float temperature) {
  if constexpr (E == Estimator::expected) return w * sigmoid(logit);
  if constexpr (E == Estimator::concrete) return w * sigmoid(relaxed(logit, u, temperature));
  if constexpr (E == Estimator::hard_concrete) return w * std::fmin(std::fmax(stretched(logit, u, temperature), 0.0f), 1.0f);
  return keep(u, threshold(logit)) ? w : 0.0f;
}

// dz / dlogit
template <Estimator E>
STOCHPRUNE_DEVICE float slope(float logit, uint32_t u, float temperature) {
  if constexpr (E == Estimator::straight_through || E == Estimator::expected) return sigmoid_slope(logit);
  const float inside = sigmoid_slope(relaxed(logit, u, temperature)) * reciprocal(temperature);
  if constexpr (E == Estimator::hard_concrete) {
    const float z = stretched(logit, u, temperature);
    return z > 0 && z < 1 ? 1.2f * inside : 0.0f;
  }
  return inside;
}

}  // namespace stochprune::cuda
