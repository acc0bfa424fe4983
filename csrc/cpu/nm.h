// N:M masks: exactly N of M neighbours are kept, sampled as conditioned Bernoullis; part of kernels_impl.h.
// stochprune/patterns.py defines them. Lanes are groups: column j of all groups of a block is one vector or more.
#pragma once
#include "blocks.h"

namespace stochprune {
namespace {

constexpr float kLargestLogit = 1e6f;

// Column j of group g of a block is at [j][g]; lanes without a group are zero.
template <int M, class T>
struct Columns {
  static constexpr int kGroups = kGroup / M, kRoom = kGroups < kLanes ? kLanes : kGroups;
  alignas(64) T v[M][kRoom] = {};

  Columns() = default;
  explicit Columns(const T* block) {
    for (int g = 0; g < kGroups; ++g)
      for (int j = 0; j < M; ++j) v[j][g] = block[g * M + j];
  }
  void to(T* block) const {
    for (int g = 0; g < kGroups; ++g)
      for (int j = 0; j < M; ++j) block[g * M + j] = v[j][g];
  }
};

// exp(logit - c) for each column of a group, with c the N-th largest logit, so that no product of N overflows or vanishes.
template <class F, int N, int M, class Exp>
inline void odds(const F (&logits)[M], F (&w)[M], const F& lowest, const F& largest, const F& range, Exp&& exp) {
  const auto smaller = [](F a, F b) { return a < b ? a : b; };
  const auto larger = [](F a, F b) { return a > b ? a : b; };
  F top[N], clamped[M];
  for (int n = 0; n < N; ++n) top[n] = lowest;
  for (int j = 0; j < M; ++j) {
    F x = clamped[j] = smaller(larger(logits[j], -largest), largest);
    for (int n = 0; n < N; ++n) {
      const F higher = larger(top[n], x);
      x = smaller(top[n], x);
      top[n] = higher;
    }
  }
  for (int j = 0; j < M; ++j) w[j] = exp(smaller(larger(clamped[j] - top[N - 1], -range), range));
}

// rest[j][k]: the sum over the k-subsets of columns j .. M-1 of the products of their odds.
template <class F, int N, int M>
inline void suffix_sums(const F (&w)[M], F (&rest)[M + 1][N + 1]) {
  for (int k = 0; k <= N; ++k) rest[M][k] = F{} + (k ? 0.0f : 1.0f);
  for (int j = M - 1; j >= 0; --j) {
    rest[j][0] = rest[M][0];
    for (int k = 1; k <= N; ++k) rest[j][k] = rest[j + 1][k] + w[j] * rest[j + 1][k - 1];
  }
}

// The pattern of one group in double arithmetic, like the reference's; used if float arithmetic cannot decide.
template <int N, int M>
void exact_pattern(const float (&logits)[M], int u, bool (&keep)[M]) {
  double l[M], w[M], rest[M + 1][N + 1], before = 0.0, product = 1.0;
  for (int j = 0; j < M; ++j) l[j] = logits[j];
  odds<double, N, M>(l, w, -1e9, kLargestLogit, 150.0, [](double x) { return std::exp(x); });
  suffix_sums<double, N, M>(w, rest);
  for (int j = 0, n = N; j < M; ++j) {
    const double bound = before + (n ? product * w[j] * rest[j + 1][n - 1] : 0.0);
    keep[j] = n && (n == M - j || u < std::floor(bound / rest[0][N] * 65536.0 + 0.5));
    if (keep[j]) {
      product *= w[j];
      --n;
    } else {
      before = bound;
    }
  }
}

template <int N, int M>
inline void float_odds(const Columns<M, float>& l, int g, f32v (&w)[M]) {
  f32v x[M];
  for (int j = 0; j < M; ++j) x[j] = load<f32v>(l.v[j] + g);
  odds<f32v, N, M>(x, w, splat(-1e9f), splat(kLargestLogit), splat(20.0f), [](f32v a) { return exp_of_minus(-a); });
}

// keep: -1 in the lanes that are kept. Columns are decided in turn, in the lexicographic order of patterns: a column is kept
// if u is below the probability of all patterns before, plus those that keep this column too.
template <int N, int M>
void sample_patterns(const float* logits, const uint16_t* u, int32_t* keep) {
  const Columns<M, float> l(logits);
  Columns<M, int32_t> kept;
  alignas(64) int32_t first[Columns<M, float>::kRoom] = {};
  for (int g = 0; g < kGroup / M; ++g) first[g] = u[g * M];
  for (int g = 0; g < kGroup / M; g += kLanes) {
    f32v w[M], rest[M + 1][N + 1];
    float_odds<N, M>(l, g, w);
    suffix_sums<f32v, N, M>(w, rest);
    const f32v scale = 65536.0f / rest[0][N], level = __builtin_convertvector(load<i32v>(first + g), f32v) + 0.5f;
    f32v before = splat(0.0f), product = splat(1.0f);  // the weight of the patterns before, and of the columns kept so far
    i32v n = N - i32v{}, unsure = {};
    for (int j = 0; j < M; ++j) {
      f32v including = splat(0.0f);
      for (int k = 1; k <= N; ++k) including = n == k ? rest[j + 1][k - 1] : including;
      const f32v with = product * w[j], bound = before + with * including, gap = bound * scale - level;
      const i32v open = n > 0, forced = n == M - j, decided = open & ~forced;
      const i32v now = open & (forced | (gap >= 0.0f));
      unsure |= decided & (gap < 0.5f) & (gap > -0.5f);
      store(kept.v[j] + g, now);
      n += now;
      before = now ? before : bound;
      product = now ? with : product;
    }
    for (uint32_t bits = lane_bits(unsure); bits; bits &= bits - 1) {
      const int at = g + __builtin_ctz(bits);
      if (at >= kGroup / M) break;
      float x[M];
      bool exact[M];
      for (int j = 0; j < M; ++j) x[j] = l.v[j][at];
      exact_pattern<N, M>(x, first[at], exact);
      for (int j = 0; j < M; ++j) kept.v[j][at] = -int32_t(exact[j]);
    }
  }
  kept.to(keep);
}

// slope[j] = sum_i value[i] cov(i kept, j kept): the derivative of the inclusion probabilities in the direction `value`, by
// forward differentiation of the sums over subsets. Adding a constant to all values changes nothing.
template <int N, int M>
void covariances(const float* logits, const float* values, float* slopes) {
  const Columns<M, float> l(logits), v(values);
  Columns<M, float> out;
  for (int g = 0; g < kGroup / M; g += kLanes) {
    f32v w[M], dw[M], rest[M + 1][N + 1], drest[M + 1][N + 1], ahead[N] = {}, dahead[N] = {};
    float_odds<N, M>(l, g, w);
    suffix_sums<f32v, N, M>(w, rest);
    f32v mean = splat(0.0f);
    for (int j = 0; j < M; ++j) mean += load<f32v>(v.v[j] + g) * (1.0f / M);
    for (int j = 0; j < M; ++j) dw[j] = w[j] * (load<f32v>(v.v[j] + g) - mean);
    for (int k = 0; k <= N; ++k) drest[M][k] = splat(0.0f);
    for (int j = M - 1; j >= 0; --j) {
      drest[j][0] = splat(0.0f);
      for (int k = 1; k <= N; ++k) drest[j][k] = drest[j + 1][k] + w[j] * drest[j + 1][k - 1] + dw[j] * rest[j + 1][k - 1];
    }
    const f32v inverse = 1.0f / rest[0][N], growth = drest[0][N] * inverse;
    ahead[0] = splat(1.0f);
    for (int j = 0; j < M; ++j) {
      f32v others = splat(0.0f), dothers = splat(0.0f);  // subsets of n - 1 other columns
      for (int k = 0; k < N; ++k) {
        others += ahead[k] * rest[j + 1][N - 1 - k];
        dothers += dahead[k] * rest[j + 1][N - 1 - k] + ahead[k] * drest[j + 1][N - 1 - k];
      }
      const f32v with = w[j] * others;
      store(out.v[j] + g, (dw[j] * others + w[j] * dothers - with * growth) * inverse);
      for (int k = N - 1; k > 0; --k) {
        dahead[k] += w[j] * dahead[k - 1] + dw[j] * ahead[k - 1];
        ahead[k] += w[j] * ahead[k - 1];
      }
    }
  }
  out.to(slopes);
}

// Runs f.template operator()<N, M>() for the run-time pattern; Python has checked that it is one of these.
template <class F>
void with_pattern(Pattern p, F&& f) {
  const auto [n, m] = p;
  if (m == 2) return f.template operator()<1, 2>();
  if (m == 4) {
    if (n == 1) return f.template operator()<1, 4>();
    if (n == 2) return f.template operator()<2, 4>();
    return f.template operator()<3, 4>();
  }
  if (n == 1) return f.template operator()<1, 8>();
  if (n == 2) return f.template operator()<2, 8>();
  if (n == 3) return f.template operator()<3, 8>();
  return f.template operator()<4, 8>();
}

// out = z * weight. Returns whether a logit is NaN.
bool nm_masked_weight(const Masked& m, Pattern p, Matrix out) {
  NanWatch nan;
  const BlockUniforms uniforms(m);
  with_pattern(p, [&]<int N, int M>() {
    for_each_block(m.col, m.shape, [&](const Block& b) {
      Buffer<float> wbuf, lbuf, obuf;
      Buffer<uint16_t> u;
      Buffer<int32_t> keep;
      uniforms(b, u.v);
      const float *w = read(m.weight, b, wbuf), *l = read(m.logits, b, lbuf);
      sample_patterns<N, M>(l, u.v, keep.v);
      float* o = target(out, b, obuf);
      for (int i = 0; i < kGroup; i += kLanes) {
        nan.see(load<f32v>(l + i));
        store(o + i, zero_unless(load<i32v>(keep.v + i), load<f32v>(w + i)));
      }
      write(out, b, o);
    });
  });
  return nan.found();
}

// From grad = dL/d(z * weight): dweight = grad * z and dlogits, either may alias grad.
void nm_weight_grad(const Masked& m, Pattern p, ConstMatrix grad, Gradients to) {
  const BlockUniforms uniforms(m);
  with_pattern(p, [&]<int N, int M>() {
    for_each_block(m.col, m.shape, [&](const Block& b) {
      Buffer<float> gbuf, wbuf, lbuf, values, dw, dl;
      const float *g = read(grad, b, gbuf), *l = read(m.logits, b, lbuf);
      if (to.weight.data) {
        Buffer<uint16_t> u;
        Buffer<int32_t> keep;
        uniforms(b, u.v);
        sample_patterns<N, M>(l, u.v, keep.v);
        for (int i = 0; i < kGroup; i += kLanes) store(dw.v + i, zero_unless(load<i32v>(keep.v + i), load<f32v>(g + i)));
      }
      if (to.logits.data) {
        const float* w = read(m.weight, b, wbuf);
        for (int i = 0; i < kGroup; i += kLanes) store(values.v + i, load<f32v>(g + i) * load<f32v>(w + i));
        covariances<N, M>(l, values.v, dl.v);
      }
      if (to.weight.data) write_sum(to.weight, b, dw, to.add, false);
      if (to.logits.data) write_sum(to.logits, b, dl, to.add, false);
    });
  });
}

}  // namespace
}  // namespace stochprune
