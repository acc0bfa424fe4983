// Thresholds of logits, and the weights of a block that are kept; part of kernels_impl.h.
#pragma once
#include "blocks.h"

namespace stochprune {
namespace {

// The thresholds of a block's logits in float arithmetic, exact or off by one. With `slopes`, also sigmoid'(logit).
// `unsure` gets a bit for each lane in which float arithmetic cannot decide between two neighbouring thresholds.
inline void approximate_thresholds(const float* logits, uint16_t* out, float* slopes, uint64_t& unsure, NanWatch& nan) {
  constexpr float kUnsure = 0.004f;  // > 16384 * the relative error of `low`
  unsure = 0;
  for (int i = 0; i < kGroup; i += kLanes) {
    const f32v x = load<f32v>(logits + i);
    const Sigmoid s = sigmoid(x);
    const f32v y = s.low * 32768.0f + 0.5f;
    i32v t = __builtin_convertvector(y, i32v);
    const f32v fraction = y - __builtin_convertvector(t, f32v);
    unsure |= uint64_t(lane_bits((fraction < kUnsure) | (fraction > 1.0f - kUnsure))) << i;
    t = t < 1 ? 1 : t;
    t = s.negative ? t : 32768 - t;
    store(out + i, __builtin_convertvector(t, u16v));
    if (slopes) store(slopes + i, s.slope);
    nan.see(x);
  }
}

// The reference's thresholds. In unsure lanes, the table of exact boundaries decides.
inline void exact_thresholds(const float* logits, uint16_t* out, NanWatch& nan) {
  const float* bound = tables().bound;
  uint64_t unsure;
  approximate_thresholds(logits, out, nullptr, unsure, nan);
  for (; unsure; unsure &= unsure - 1) {
    const int i = __builtin_ctzll(unsure);
    int v = out[i];
    while (logits[i] < bound[v]) --v;
    while (logits[i] >= bound[v + 1]) ++v;
    out[i] = uint16_t(v);
  }
}

// Thresholds within kQuickError of the exact ones. With table look-ups in registers, this is a third of the work.
#if defined(__AVX512F__)
constexpr int kQuickError = 16;  // 3 inside [-8, 8]; outside, logits are clamped to the interval, which adds up to 11

inline void quick_thresholds(const float* logits, uint16_t* out, NanWatch& nan) {
  const float* c = tables().curve;
  for (int i = 0; i < kGroup; i += kLanes) {
    const f32v x = load<f32v>(logits + i);
    nan.see(x);
    const __m512 s = _mm512_min_ps(_mm512_max_ps(__m512(x * 2.0f + 16.0f), _mm512_setzero_ps()), _mm512_set1_ps(31.999998f));
    const __m512i piece = _mm512_cvttps_epi32(s);
    const auto pick = [&](const float* t) {
      return f32v(_mm512_permutex2var_ps(_mm512_loadu_ps(t), piece, _mm512_loadu_ps(t + 16)));
    };
    const f32v r = f32v(s) - f32v(_mm512_cvtepi32_ps(piece)), y = (pick(c + 64) * r + pick(c + 32)) * r + pick(c);
    store(out + i, __builtin_convertvector(__builtin_convertvector(y, i32v), u16v));
  }
}
#else
constexpr int kQuickError = 1;

inline void quick_thresholds(const float* logits, uint16_t* out, NanWatch& nan) {
  uint64_t unsure;
  approximate_thresholds(logits, out, nullptr, unsure, nan);
}
#endif

// Thresholds that keep the same weights as the reference's do, for these uniforms. An error matters only if the uniform is
// near the threshold; then the exact boundary decides. With `slopes`, also sigmoid'(logit).
inline void deciding_thresholds(const float* logits, const uint16_t* u, uint16_t* out, float* slopes, NanWatch& nan) {
  if (slopes) {
    uint64_t unsure;
    approximate_thresholds(logits, out, slopes, unsure, nan);
  } else {
    quick_thresholds(logits, out, nan);
  }
  const auto is_near = [](uint16_t v, uint16_t t) { return uint16_t((v & 0x7FFF) - t + kQuickError) <= 2 * kQuickError; };
  uint16_t near = 0;
  for (int i = 0; i < kGroup; ++i) near |= is_near(u[i], out[i]);
  if (near) {
    const float* bound = tables().bound;
    for (int i = 0; i < kGroup; ++i) {
      const int v = u[i] & 0x7FFF;
      if (is_near(u[i], out[i])) out[i] = uint16_t(logits[i] >= bound[v + 1] ? v + 1 : v);
    }
  }
}

inline i32v kept(const uint16_t* u, const uint16_t* t) {
  const u16v v = load<u16v>(u) & uint16_t(0x7FFF);
  return __builtin_convertvector(v < load<u16v>(t), i32v);
}

// Lanes [i, i + kLanes) of a block's hard mask, from its bits.
inline i32v lanes_of(uint64_t bits, int i) {
  u32v position;
  for (int lane = 0; lane < kLanes; ++lane) position[lane] = uint32_t(lane);
  const u32v word = uint32_t(bits >> i) - u32v{};
  return -reinterpret_cast<i32v>((word >> position) & 1u);
}

inline uint64_t& word_of(Bits bits, const Masked& m, const Block& b) {
  return bits.data[b.row * bits.stride + int64_t(b.group - m.col / kGroup)];
}

}  // namespace
}  // namespace stochprune
