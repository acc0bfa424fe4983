// Gaussian weights mu + softplus(rho) e under the contract's normals e, and their gradient; part of kernels_impl.h.
#pragma once
#include "../common/normal.h"
#include "blocks.h"

namespace stochprune {
namespace {

// ln(x) of a positive normal float, relative error below 2e-7 up to x = 1: reduction to [sqrt(1/2), sqrt(2)], degree 9.
inline f32v logarithm(f32v x) {
  const i32v exponent = (as_int(x) - 0x3F3504F3) >> 23;
  const f32v n = __builtin_convertvector(exponent, f32v), f = as_float(as_int(x) - (exponent << 23)) - 1.0f, z = f * f;
  f32v p = f * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  return n * 0.693359375f + (f + (p * f * z - 0.5f * z - n * 2.12194440e-4f));
}

inline f32v square_root(f32v x) {
#if defined(__AVX512F__)
  return f32v(_mm512_sqrt_ps(__m512(x)));
#elif defined(__AVX2__)
  return f32v(_mm256_sqrt_ps(__m256(x)));
#else
  for (int i = 0; i < kLanes; ++i) x[i] = std::sqrt(x[i]);
  return x;
#endif
}

// Both normals of two words.
inline void box_muller(u32v w0, u32v w1, f32v& even, f32v& odd) {
  const f32v p = (__builtin_convertvector(reinterpret_cast<i32v>(w0 >> 9), f32v) + 0.5f) * 0x1p-23f;
  const f32v radius = square_root(logarithm(p) * -2.0f);
  const i32v turn = reinterpret_cast<i32v>(w1 >> 9), quarter = (turn + (1 << 20)) >> 21;
  const f32v a = (__builtin_convertvector(turn - (quarter << 21), f32v) + 0.5f) * 7.4901406e-7f, z = a * a;
  const f32v sine = ((z * -1.9515295891e-4f + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * a + a;
  const f32v cosine = ((z * 2.443315711809948e-5f - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z - 0.5f * z + 1.0f;
  const i32v swapped = (quarter & 1) != 0;
  const i32v even_sign = (quarter + 1) << 30 & INT32_MIN, odd_sign = quarter << 30 & INT32_MIN;  // the second bits
  even = as_float(as_int(radius * (swapped ? sine : cosine)) ^ even_sign);
  odd = as_float(as_int(radius * (swapped ? cosine : sine)) ^ odd_sign);
}

// The normals of a group of 64 columns. Calls 0..7 and 8..15 are those of two mask groups in another stream.
inline void normals64(const BlockUniforms& uniforms, Block b, Buffer<float>& out) {
  alignas(64) uint32_t halves[2][4][8], words[4][16];
  b.group *= 2;
  for (uint64_t h = 0; h < 2; ++h, ++b.group) {
    uniforms(b, reinterpret_cast<uint16_t*>(halves[h]));
    for (int s = 0; s < 4; ++s) std::memcpy(words[s] + 8 * h, halves[h][s], sizeof halves[h][s]);
  }
  for (int s = 0; s < 4; s += 2) {
    for (int i = 0; i < 16; i += kLanes) {
      f32v even, odd;
      box_muller(load<u32v>(words[s] + i), load<u32v>(words[s + 1] + i), even, odd);
      store(out.v + 16 * s + i, even);
      store(out.v + 16 * s + 16 + i, odd);
    }
  }
}

// y, or NaN where x is NaN: the functions below clamp the bits of their arguments, which turns a NaN into a number.
inline f32v unless_nan(f32v x, f32v y) { return x == x ? y : x; }

// ln(1 + exp(x)). The rounding error of 1 + exp(-|x|), which matters if exp(-|x|) is small, is added again.
inline f32v softplus(f32v x) {
  const f32v e = exp_of_minus(magnitude(x)), sum = 1.0f + e;
  const f32v tail = logarithm(sum) + (e - (sum - 1.0f)) * reciprocal(sum);
  return unless_nan(x, (x > 0.0f ? x : splat(0.0f)) + tail);
}

inline f32v softplus_slope(f32v x) { return unless_nan(x, sigmoid(x).value); }

// out = mu + softplus(rho) e; without mu and rho, the standard normals.
void gaussian_weight(const Masked& m, ConstMatrix mu, ConstMatrix rho, Matrix out) {
  const BlockUniforms uniforms(m, kNormalStream);
  for_each_block(m.col, m.shape, [&](const Block& b) {
    Buffer<float> e, mbuf, rbuf, obuf;
    normals64(uniforms, b, e);
    float* o = target(out, b, obuf);
    if (!mu.data) {
      std::memcpy(o, e.v, sizeof e.v);
    } else {
      const float *mean = read(mu, b, mbuf), *r = read(rho, b, rbuf);
      for (int i = 0; i < kGroup; i += kLanes) {
        store(o + i, load<f32v>(mean + i) + softplus(load<f32v>(r + i)) * load<f32v>(e.v + i));
      }
    }
    write(out, b, o);
  });
}

// drho = grad e softplus'(rho), from grad = dL/d(mu + softplus(rho) e); it may alias grad. With `add`, adds to drho.
void gaussian_grad(const Masked& m, ConstMatrix grad, ConstMatrix rho, Matrix drho, bool add) {
  const BlockUniforms uniforms(m, kNormalStream);
  for_each_block(m.col, m.shape, [&](const Block& b) {
    Buffer<float> e, gbuf, rbuf, dr;
    normals64(uniforms, b, e);
    const float *g = read(grad, b, gbuf), *r = read(rho, b, rbuf);
    for (int i = 0; i < kGroup; i += kLanes) {
      store(dr.v + i, load<f32v>(g + i) * load<f32v>(e.v + i) * softplus_slope(load<f32v>(r + i)));
    }
    write_sum(drho, b, dr, add, false);
  });
}

}  // namespace
}  // namespace stochprune
