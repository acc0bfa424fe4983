// Mean and variance of random weights, and the gradients through both; part of kernels_impl.h.
#pragma once
#include "gaussian.h"

namespace stochprune {
namespace {

// Weights that are kept with probability q (1 without logits), and are then N(mu, sigma^2) (sigma is 0 without rho).
struct Random {
  f32v mu, q, slope, rest, sigma;  // slope: q (1 - q), the variance of the mask and dq / dlogit; rest: 1 - 2 q

  Random(const float* weight, const float* logits, const float* rho, NanWatch& nan)
      : mu(load<f32v>(weight)), q(splat(1.0f)), slope(splat(0.0f)), rest(splat(-1.0f)), sigma(splat(0.0f)) {
    if (logits) {
      const f32v x = load<f32v>(logits);
      nan.see(x);
      const Sigmoid s = sigmoid(x);
      q = s.value;
      slope = s.slope;
      rest = s.negative ? 1.0f - 2.0f * s.low : 2.0f * s.low - 1.0f;
    }
    if (rho) sigma = softplus(load<f32v>(rho));
  }
};

// mean = q mu and variance = q (1 - q) mu^2 + q sigma^2, in one pass. Returns whether a logit is NaN.
bool moments(Shape shape, ConstMatrix weight, ConstMatrix logits, ConstMatrix rho, Matrix mean, Matrix variance) {
  NanWatch nan;
  for_each_block(0, shape, [&](const Block& b) {
    Buffer<float> wbuf, lbuf, rbuf, mbuf, vbuf;
    const float* w = read(weight, b, wbuf);
    const float *l = logits.data ? read(logits, b, lbuf) : nullptr, *r = rho.data ? read(rho, b, rbuf) : nullptr;
    float *m = target(mean, b, mbuf), *v = target(variance, b, vbuf);
    for (int i = 0; i < kGroup; i += kLanes) {
      const Random x(w + i, l ? l + i : l, r ? r + i : r, nan);
      store(m + i, x.q * x.mu);
      store(v + i, x.slope * x.mu * x.mu + x.q * x.sigma * x.sigma);
    }
    write(mean, b, m);
    write(variance, b, v);
  });
  return nan.found();
}

// The gradients of weight, logits and rho, where needed, from those of mean and variance.
void moments_grad(Shape shape, ConstMatrix dmean, ConstMatrix dvariance, ConstMatrix weight, ConstMatrix logits, ConstMatrix rho,
                  Matrix dweight, Matrix dlogits, Matrix drho) {
  NanWatch nan;  // not used: forward has refused NaN
  for_each_block(0, shape, [&](const Block& b) {
    Buffer<float> mbuf, vbuf, wbuf, lbuf, rbuf, dw, dl, dr;
    const float *dm = read(dmean, b, mbuf), *dv = read(dvariance, b, vbuf), *w = read(weight, b, wbuf);
    const float *l = logits.data ? read(logits, b, lbuf) : nullptr, *r = rho.data ? read(rho, b, rbuf) : nullptr;
    for (int i = 0; i < kGroup; i += kLanes) {
      const Random x(w + i, l ? l + i : l, r ? r + i : r, nan);
      const f32v m = load<f32v>(dm + i), v = load<f32v>(dv + i);
      store(dw.v + i, m * x.q + v * x.slope * x.mu * 2.0f);
      store(dl.v + i, (m * x.mu + v * (x.rest * x.mu * x.mu + x.sigma * x.sigma)) * x.slope);
      if (r) store(dr.v + i, v * x.q * x.sigma * softplus_slope(load<f32v>(r + i)) * 2.0f);
    }
    if (dweight.data) write(dweight, b, dw.v);
    if (dlogits.data) write(dlogits, b, dl.v);
    if (drho.data) write(drho, b, dr.v);
  });
}

}  // namespace
}  // namespace stochprune
