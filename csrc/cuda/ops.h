// The operations of the kernels on eight weights of a row and their random bits.
#pragma once
#include "estimators.h"
#include "memory.h"

namespace stochprune::cuda {

// keep = 1 if a weight is kept under its threshold, else 0
struct KeepMask {
  Thresholds threshold;
  uint8_t* keep;  // contiguous, `cols` wide
  int64_t cols;
  bool wide;

  STOCHPRUNE_DEVICE bool draws() const { return true; }
  STOCHPRUNE_DEVICE void operator()(Place at, const uint32_t* u, uint32_t) const {
    const Eight<uint16_t> t = read(threshold.data + at.row * threshold.stride + at.col, at.span, wide);
    Eight<uint8_t> kept;
    for (int i = 0; i < kColumns; ++i) kept.at[i] = stochprune::keep(u[i], t.at[i]);
    write(keep + at.row * cols + at.col, kept, at.span, wide);
  }
};

// The thresholds of trained probabilities.
struct FormThresholds {
  Cells logits;
  uint16_t* out;  // contiguous, `cols` wide
  int64_t cols;

  STOCHPRUNE_DEVICE bool draws() const { return false; }
  STOCHPRUNE_DEVICE void operator()(Place at, const uint32_t*, uint32_t) const {
    float logit[kColumns];
    load(logits, at.row, at.col, at.span, logit);
    Eight<uint16_t> t;
    for (int i = 0; i < kColumns; ++i) t.at[i] = uint16_t(threshold(logit[i]));
    write(out + at.row * cols + at.col, t, at.span, logits.wide);
  }
};

// out[d] = z_d * weight
template <Estimator E>
struct MaskWeight {
  Cells weight, logits, out;  // out: one matrix below the other, `rows` apart
  int64_t rows;
  float temperature;

  STOCHPRUNE_DEVICE bool draws() const { return E != Estimator::expected; }
  STOCHPRUNE_DEVICE void operator()(Place at, const uint32_t* u, uint32_t d) const {
    float w[kColumns], logit[kColumns];
    load(weight, at.source, at.col, at.span, w);
    load(logits, at.source, at.col, at.span, logit);
    for (int i = 0; i < kColumns; ++i) w[i] = masked<E>(w[i], logit[i], u[i], temperature);
    store(out, d * rows + at.row, at.col, at.span, w);
  }
};

// From grad = dL/d(z * weight): dweight = grad z and dlogits = grad weight dz/dlogit; either may be grad itself. The masked
// weight z * weight can be written in the same pass, for the gradient of x.
template <Estimator E>
struct WeightGrad {
  Cells grad, weight, logits, prior;  // prior: its logits, or no data
  const double* kl_grad;              // the derivative of the loss with respect to the KL divergence
  Cells dweight, dlogits, masked_weight;
  float temperature;
  bool add;  // add to the present values instead of overwriting them

  // The straight-through slope needs no bits.
  STOCHPRUNE_DEVICE bool draws() const {
    return E != Estimator::expected && (E != Estimator::straight_through || dweight.data || masked_weight.data);
  }
  STOCHPRUNE_DEVICE void operator()(Place at, const uint32_t* u, uint32_t) const {
    float g[kColumns], logit[kColumns], w[kColumns], result[kColumns] = {};
    load(grad, at.row, at.col, at.span, g);
    load(logits, at.source, at.col, at.span, logit);
    if (dlogits.data || masked_weight.data) load(weight, at.source, at.col, at.span, w);  // before a store overwrites it
    if (masked_weight.data) {
      for (int i = 0; i < kColumns; ++i) result[i] = masked<E>(w[i], logit[i], u[i], temperature);
      store(masked_weight, at.row, at.col, at.span, result);
    }
    if (dweight.data) {
      if (add) load(dweight, at.row, at.col, at.span, result);
      for (int i = 0; i < kColumns; ++i) result[i] = masked<E>(g[i], logit[i], u[i], temperature) + (add ? result[i] : 0.0f);
      store(dweight, at.row, at.col, at.span, result);
    }
    if (dlogits.data) {
      if (add) load(dlogits, at.row, at.col, at.span, result);
      for (int i = 0; i < kColumns; ++i) result[i] = g[i] * w[i] * slope<E>(logit[i], u[i], temperature) + (add ? result[i] : 0.0f);
      if (prior.data) {
        load(prior, at.source, at.col, at.span, w);
        for (int i = 0; i < kColumns; ++i) {
          const float s = sigmoid_slope(logit[i]) * float(*kl_grad);
          result[i] += s != 0.0f ? (logit[i] - w[i]) * s : 0.0f;  // the logit may be infinite where the slope is 0
        }
      }
      store(dlogits, at.row, at.col, at.span, result);
    }
  }
};

}  // namespace stochprune::cuda
