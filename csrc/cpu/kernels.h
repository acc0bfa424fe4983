// The CPU kernels: their types, and the table of functions that one instruction set provides.
// The kernels do not check their input; Python checks it before.
#pragma once
#include <cstdint>

#include "../common/types.h"

namespace stochprune {

struct Bits {
  uint64_t* data;  // bit i of word g: 1 if column 64 g + i is kept, counted from the first column of the first group; null: none
  int64_t stride;  // words from one row to the next
};

struct Gaussians {  // random weights and their prior, each matrix one row
  ConstMatrix mu, sigma, prior_mu, prior_sigma;
  ConstMatrix logits;  // multiply each weight's term by its probability of being kept; null: by 1
};

struct GaussianGrads {
  Matrix mu, sigma, prior_mu, prior_sigma, logits;
};

struct Divergence {  // the KL of the masks from a prior's, times a factor; its gradient is added to that of the logits
  ConstMatrix prior;  // the prior's logits; no data: no KL
  float scale;
};

struct Gradients {
  Matrix weight, logits;
  bool add;  // add to the old values, to sum over draws
  bool past_caches = false;  // new float32 gradients are stored past the caches, and the caller fences, after many small parts
};

struct Pattern {
  int n, m;  // n of every m neighbours are kept
};

struct SparseRows {  // a matrix by the weights that are kept, in the order of rows and columns
  const float* values;
  const uint16_t* columns;
  const int64_t* first;  // [rows + 1] of each row its first weight, then the number of all
};

// How many examples a column of x holds in the product of `batch` <= 16 examples with sparse rows.
constexpr int kSparseBatch = 16;
static inline int sparse_lanes(int batch) { return batch == 1 ? 1 : batch <= 4 ? 4 : batch <= 8 ? 8 : kSparseBatch; }

struct Kernels {  // they use only the first draw of a Masked
  const char* name;
  // keep[n, k] = 1 if weight (n, k) is kept under its threshold, else 0.
  void (*keep_mask)(const Masked&, uint8_t* keep);
  // Thresholds of trained probabilities, equal to the float64 reference. Returns whether a logit is NaN.
  bool (*thresholds)(Shape, ConstMatrix logits, uint16_t* out);
  // out = z * weight with the estimator's mask z; a hard mask is also written to `kept`. Returns whether a logit is NaN.
  bool (*masked_weight)(const Masked&, Matrix out, Bits kept);
  // From grad = dL/d(z * weight): dweight = grad * z and dlogits = grad * weight * dz/dlogit, either may alias grad.
  // Reads a hard mask from `kept` if it is given.
  void (*weight_grad)(const Masked&, ConstMatrix grad, Bits kept, Divergence, Gradients);
  // out = mu + softplus(rho) e under the contract's normals e; without mu and rho, the normals.
  void (*gaussian_weight)(const Masked&, ConstMatrix mu, ConstMatrix rho, Matrix out);
  // drho = grad e softplus'(rho) with grad = dL/d(mu + softplus(rho) e), which drho may alias.
  void (*gaussian_grad)(const Masked&, ConstMatrix grad, ConstMatrix rho, Matrix drho, bool add);
  // KL in nats of `count` weights in one row from their prior; NaN if an input is NaN or a standard deviation not positive.
  double (*bernoulli_kl)(int64_t count, ConstMatrix logits, ConstMatrix prior);
  double (*gaussian_kl)(int64_t count, Gaussians);
  // Their gradients times `scale`, where needed.
  void (*bernoulli_kl_grad)(int64_t count, double scale, ConstMatrix logits, ConstMatrix prior, Matrix dlogits, Matrix dprior);
  void (*gaussian_kl_grad)(int64_t count, double scale, Gaussians, GaussianGrads);
  // masked_weight and weight_grad under the masks of a pattern.
  bool (*nm_masked_weight)(const Masked&, Pattern, Matrix out);
  void (*nm_weight_grad)(const Masked&, Pattern, ConstMatrix grad, Gradients);
  // Mean q w and variance q (1 - q) w^2 + q softplus(rho)^2; q = 1 without logits, no last term without rho.
  bool (*moments)(Shape, ConstMatrix weight, ConstMatrix logits, ConstMatrix rho, Matrix mean, Matrix variance);
  void (*moments_grad)(Shape, ConstMatrix dmean, ConstMatrix dvariance, ConstMatrix weight, ConstMatrix logits, ConstMatrix rho,
                       Matrix dweight, Matrix dlogits, Matrix drho);
  // y [batch, rows] = x W^T + bias, of the rows begin .. end; x [columns, sparse_lanes(batch)], bias may be null.
  void (*sparse_linear)(const SparseRows&, int64_t begin, int64_t end, const float* x, const float* bias, Matrix y, int batch);
  // out = the float32 weight in bfloat16, rounded up or down by the bits of its address; contiguous.
  void (*stochastic_round)(const Masked&, uint16_t* out);
};

// The tables compiled into this binary; null if the target architecture lacks these instructions.
const Kernels* avx512_kernels();
const Kernels* avx2_kernels();
const Kernels* scalar_kernels();

constexpr float kCurveEnd = 9.0f;

// Threshold boundaries and logits of the uniforms, made once in float64.
struct Tables {
  const float* bound;  // [32769] bound[t]: the smallest float whose threshold is >= t; bound[32768] = NaN
  const float* logit;  // [32768] logit((u + 0.5) / 32768)
  const double* entropy;  // [32769] q ln q + (1-q) ln(1-q) of q = t / 32768
  const float* curve;  // [3, 32] 32768 sigmoid(x) + 1/2 on 32 pieces of [-kCurveEnd, kCurveEnd): coefficients of 1, s, s^2
};
const Tables& tables();
uint16_t exact_threshold(double logit);

}  // namespace stochprune
