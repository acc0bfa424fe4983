// The KL of random weights from a prior, and its gradients; part of kernels_impl.h.
//
// The weights are one row. Terms are computed and summed in double; lanes and blocks are added in a fixed order.
#pragma once
#include <cmath>
#include <limits>

#include "decide.h"
#include "simd_double.h"

namespace stochprune {
namespace {

constexpr double kUnit = 1.0 / 32768.0;

class Sum {
 public:
  // Adds terms, which are negative only by rounding; a NaN remains.
  void add(f64v terms) { total_ += terms < 0.0 ? splat(0.0) : terms; }
  // Adds the terms in the lanes that the block uses.
  void add(const Block& b, Buffer<double>& terms) {
    if (!b.whole()) std::memset(terms.v + b.count, 0, (kGroup - b.count) * sizeof(double));
    for (int i = 0; i < kGroup; i += kDoubles) add(load<f64v>(terms.v + i));
  }
  double value() const {
    double sum = 0;
    for (int i = 0; i < kDoubles; ++i) sum += total_[i];
    return sum;
  }

 private:
  f64v total_ = {};
};

inline void watch(NanWatch& nan, const float* values) {
  for (int i = 0; i < kGroup; i += kLanes) nan.see(load<f32v>(values + i));
}

// kl(q || p) = q ln q + (1-q) ln(1-q) + log1p(exp(-|l|)) + |l| (l > 0 ? 1-q : q), with p = sigmoid(l). Terms
// cancel only if q is near p. A lane takes one logarithm for each block, of the product of its numbers, which lie in 1 .. 2.
double bernoulli_kl(int64_t count, ConstMatrix logits, ConstMatrix prior) {
  constexpr float kSure = 800.0f;  // with q = 1 a prior whose term is exactly 0
  const double* entropy = tables().entropy;
  NanWatch nan;
  Sum sum;
  for_each_block(0, Shape{1, count}, [&](const Block& b) {
    Buffer<float> lbuf, pbuf;
    Buffer<uint16_t> t;
    Buffer<double> own;
    const float* p = read(prior, b, pbuf);
    exact_thresholds(read(logits, b, lbuf), t.v, nan);
    watch(nan, p);
    for (int i = b.count; i < kGroup; ++i) pbuf.v[i] = kSure, t.v[i] = 32768;
    for (int i = 0; i < kGroup; ++i) own.v[i] = entropy[t.v[i]];
    f64v product = splat(1.0), rest = {};
    for (int i = 0; i < kGroup; i += kDoubles) {
      const f64v l = widen(p + i), size = magnitude(l), q = widen(t.v + i) * kUnit;
      product *= 1.0 + double_exp_of_minus(size);
      rest += size * (l > 0.0 ? 1.0 - q : q) + load<f64v>(own.v + i);
    }
    sum.add(double_log(product) + rest);
  });
  return nan.found() ? std::numeric_limits<double>::quiet_NaN() : sum.value();
}

void bernoulli_kl_grad(int64_t count, double scale, ConstMatrix logits, ConstMatrix prior, Matrix dlogits, Matrix dprior) {
  NanWatch nan;  // not used: forward has refused NaN
  for_each_block(0, Shape{1, count}, [&](const Block& b) {
    Buffer<float> lbuf, pbuf, obuf;
    const float *l = read(logits, b, lbuf), *p = read(prior, b, pbuf);
    if (dlogits.data) {  // (logit - prior) sigmoid'(logit)
      float* o = target(dlogits, b, obuf);
      const f32v end = splat(80.0f), factor = splat(float(scale));  // beyond 80 the slope is 0 in float
      for (int i = 0; i < kGroup; i += kLanes) {
        f32v x = load<f32v>(l + i);
        const f32v slope = sigmoid(x).slope;
        x = x > end ? end : x < -end ? -end : x;
        store(o + i, factor * (x - load<f32v>(p + i)) * slope);
      }
      write(dlogits, b, o);
    }
    if (dprior.data) {  // p - q in double, since p is near q
      Buffer<uint16_t> t;
      exact_thresholds(l, t.v, nan);
      float* o = target(dprior, b, obuf);
      for (int i = 0; i < kGroup; i += kDoubles) {
        const f64v x = widen(p + i), e = double_exp_of_minus(magnitude(x));
        narrow(o + i, scale * ((x < 0.0 ? e : splat(1.0)) / (1.0 + e) - widen(t.v + i) * kUnit));
      }
      write(dprior, b, o);
    }
  });
}

// One block of Gaussian weights: z = (mu - prior_mu) / prior_sigma and r = sigma / prior_sigma.
struct GaussianBlock {
  Buffer<float> buffers[4];
  const float *mu, *sigma, *prior_mu, *prior_sigma;

  GaussianBlock(const Gaussians& g, const Block& b)
      : mu(read(g.mu, b, buffers[0])),
        sigma(read(g.sigma, b, buffers[1])),
        prior_mu(read(g.prior_mu, b, buffers[2])),
        prior_sigma(read(g.prior_sigma, b, buffers[3])) {}

  f64v inverse(int i) const { return 1.0 / widen(prior_sigma + i); }
  f64v z(int i) const { return (widen(mu + i) - widen(prior_mu + i)) * inverse(i); }
  f64v r(int i) const { return widen(sigma + i) * inverse(i); }
  f64v kl(int i) const {
    const f64v ratio = r(i), shift = z(i);
    return ((ratio - 1.0) * (ratio + 1.0) + shift * shift) * 0.5 - double_log(ratio);
  }
  // True if the standard deviations in the block's lanes are positive and finite.
  bool valid(const Block& b) const {
    constexpr float inf = std::numeric_limits<float>::infinity();
    bool good = true;
    for (int i = b.begin; i < b.begin + b.count; ++i)
      good &= (sigma[i] > 0.0f) & (sigma[i] < inf) & (prior_sigma[i] > 0.0f) & (prior_sigma[i] < inf);
    return good;
  }
};

double gaussian_kl(int64_t count, Gaussians g) {
  NanWatch nan;
  bool valid = true;
  Sum sum;
  for_each_block(0, Shape{1, count}, [&](const Block& b) {
    const GaussianBlock block(g, b);
    Buffer<uint16_t> t;
    Buffer<double> terms;
    valid &= block.valid(b);
    for (int i = 0; i < kGroup; i += kDoubles) store(terms.v + i, block.kl(i));
    if (g.logits.data) {
      Buffer<float> lbuf;
      exact_thresholds(read(g.logits, b, lbuf), t.v, nan);
      for (int i = 0; i < kGroup; i += kDoubles) store(terms.v + i, load<f64v>(terms.v + i) * widen(t.v + i) * kUnit);
    }
    sum.add(b, terms);
  });
  return valid && !nan.found() ? sum.value() : std::numeric_limits<double>::quiet_NaN();
}

void gaussian_kl_grad(int64_t count, double scale, Gaussians g, GaussianGrads d) {
  NanWatch nan;
  for_each_block(0, Shape{1, count}, [&](const Block& b) {
    const GaussianBlock block(g, b);
    Buffer<float> lbuf, obuf;
    Buffer<uint16_t> t;
    const float* logits = g.logits.data ? read(g.logits, b, lbuf) : nullptr;
    if (logits) exact_thresholds(logits, t.v, nan);
    const auto each = [&](Matrix out, auto&& formula) {
      if (!out.data) return;
      float* o = target(out, b, obuf);
      for (int i = 0; i < kGroup; i += kDoubles) {
        const f64v q = logits ? widen(t.v + i) * kUnit : splat(1.0);
        narrow(o + i, scale * q * block.inverse(i) * formula(block.z(i), block.r(i)));
      }
      write(out, b, o);
    };
    each(d.mu, [](f64v z, f64v) { return z; });
    each(d.sigma, [](f64v, f64v r) { return r - 1.0 / r; });
    each(d.prior_mu, [](f64v z, f64v) { return -z; });
    each(d.prior_sigma, [](f64v z, f64v r) { return 1.0 - r * r - z * z; });
    if (d.logits.data) {
      float* o = target(d.logits, b, obuf);
      for (int i = 0; i < kGroup; i += kDoubles) {
        const f64v e = double_exp_of_minus(magnitude(widen(logits + i)));
        narrow(o + i, scale * block.kl(i) * e / ((1.0 + e) * (1.0 + e)));
      }
      write(d.logits, b, o);
    }
  });
}

}  // namespace
}  // namespace stochprune
