// Thresholds of logits, and the weights of a block that are kept; part of kernels_impl.h.
#pragma once
#include "blocks.h"

namespace stochprune {
namespace {

// The thresholds of a block's logits in float arithmetic, exact or off by one. `unsure` gets a bit for each lane in which float
// arithmetic cannot decide between two neighbouring thresholds.
STOCHPRUNE_INLINE void approximate_thresholds(const float* logits, uint16_t* out, uint64_t& unsure, NanWatch& nan) {
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
    nan.see(x);
  }
}

// The reference's thresholds. In unsure lanes, the table of exact boundaries decides.
STOCHPRUNE_INLINE void exact_thresholds(const float* logits, uint16_t* out, NanWatch& nan) {
  const float* bound = tables().bound;
  uint64_t unsure;
  approximate_thresholds(logits, out, unsure, nan);
  for (; unsure; unsure &= unsure - 1) {
    const int i = __builtin_ctzll(unsure);
    int v = out[i];
    while (logits[i] < bound[v]) --v;
    while (logits[i] >= bound[v + 1]) ++v;
    out[i] = uint16_t(v);
  }
}

// Thresholds within kQuickError of the exact ones. With table look-ups in registers, or a quotient of polynomials, this is a
// third of the work.
#if defined(__AVX512F__)
constexpr int kQuickError = 5;  // 4 in a scan of all logits, which are clamped to the curve's interval

STOCHPRUNE_INLINE void quick_thresholds(const float* logits, uint16_t* out, NanWatch& nan) {
  const float* c = tables().curve;
  const auto one = [&](int i) {
    const f32v x = load<f32v>(logits + i);
    nan.see(x);
    const __m512 s = _mm512_min_ps(_mm512_max_ps(__m512(x * (16.0f / kCurveEnd) + 16.0f), _mm512_setzero_ps()), _mm512_set1_ps(31.999998f));
    const __m512i piece = _mm512_cvttps_epi32(s);
    const auto pick = [&](const float* t) {
      return f32v(_mm512_permutex2var_ps(_mm512_loadu_ps(t), piece, _mm512_loadu_ps(t + 16)));
    };
    const f32v r = f32v(s) - f32v(_mm512_cvtepi32_ps(piece));
    return _mm512_cvttps_epi32(__m512((pick(c + 64) * r + pick(c + 32)) * r + pick(c)));
  };
  __m512i even;  // the lower halves of 32 words
  for (int i = 0; i < 32; ++i) reinterpret_cast<uint16_t*>(&even)[i] = uint16_t(2 * i);
  for (int i = 0; i < kGroup; i += 32) _mm512_storeu_si512(out + i, _mm512_permutex2var_epi16(one(i), even, one(i + 16)));
}
#elif defined(__AVX2__)
constexpr int kQuickError = 3;  // 1 inside [-10, 10]; outside, logits are clamped to the interval, which adds 1.5

// 16384 + 16384 tanh(x / 2), the second term by an odd quotient whose largest error, 0.7, is the least.
STOCHPRUNE_INLINE void quick_thresholds(const float* logits, uint16_t* out, NanWatch& nan) {
  const auto one = [&](int i) {
    const f32v given = load<f32v>(logits + i);
    nan.see(given);
    const f32v x = f32v(_mm256_min_ps(_mm256_max_ps(__m256(given), __m256(splat(-10.0f))), __m256(splat(10.0f))));
    const f32v s = x * x;
    const f32v p = ((s * 0.335331647f + 208.329037f) * s + 8190.44468f) * x;
    const f32v q = (s * 7.8994e-4f + 0.108626f) * s + 1.0f;
    return _mm256_cvttps_epi32(__m256(p / q + 16384.5f));
  };
  for (int i = 0; i < kGroup; i += 16) {
    const __m256i mixed = _mm256_packus_epi32(one(i), one(i + 8));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_permute4x64_epi64(mixed, 0xD8));
  }
}
#else
constexpr int kQuickError = 1;

STOCHPRUNE_INLINE void quick_thresholds(const float* logits, uint16_t* out, NanWatch& nan) {
  uint64_t unsure;
  approximate_thresholds(logits, out, unsure, nan);
}
#endif

// A block's hard mask as bits: the uniforms that are below their threshold plus an offset. Saturation changes no bit, because
// uniforms are below 2^15 and the largest is never kept.
template <int Offset = 0>
STOCHPRUNE_INLINE uint64_t kept_bits(const uint16_t* u, const uint16_t* t) {
  uint64_t bits = 0;
#if defined(__AVX512BW__)
  const auto under = [&](int i) {
    const __m512i above = _mm512_adds_epi16(_mm512_loadu_si512(t + i), _mm512_set1_epi16(Offset));
    return _mm512_cmplt_epi16_mask(_mm512_and_si512(_mm512_loadu_si512(u + i), _mm512_set1_epi16(0x7FFF)), above);
  };
  bits = uint64_t(under(0)) | uint64_t(under(32)) << 32;
#elif defined(__AVX2__)
  const auto under = [&](int i) {
    const auto at = [](const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); };
    const __m256i above = _mm256_adds_epi16(at(t + i), _mm256_set1_epi16(Offset));
    return _mm256_cmpgt_epi16(above, _mm256_and_si256(at(u + i), _mm256_set1_epi16(0x7FFF)));
  };
  for (int i = 0; i < kGroup; i += 32) {
    const __m256i mixed = _mm256_packs_epi16(under(i), under(i + 16));
    bits |= uint64_t(uint32_t(_mm256_movemask_epi8(_mm256_permute4x64_epi64(mixed, 0xD8)))) << i;
  }
#else
  for (int i = 0; i < kGroup; i += kLanes) {
    const i32v v = __builtin_convertvector(load<u16v>(u + i) & uint16_t(0x7FFF), i32v);
    bits |= uint64_t(lane_bits(v < __builtin_convertvector(load<u16v>(t + i), i32v) + Offset)) << i;
  }
#endif
  return bits;
}

// Those lanes of the mask whose uniform is too near its threshold for float arithmetic: the exact boundaries decide.
[[gnu::noinline]] inline uint64_t kept_among(uint64_t near, const float* logits, const uint16_t* u) {
  const float* bound = tables().bound;
  uint64_t bits = 0;
  for (; near; near &= near - 1) {
    const int i = __builtin_ctzll(near);
    bits |= uint64_t(logits[i] >= bound[(u[i] & 0x7FFF) + 1]) << i;
  }
  return bits;
}

// A block's hard mask as bits, from its logits.
STOCHPRUNE_INLINE uint64_t kept_by_logits(const float* logits, const uint16_t* u, NanWatch& nan) {
  Buffer<uint16_t> t;
  quick_thresholds(logits, t.v, nan);
  const uint64_t certain = kept_bits<-kQuickError>(u, t.v), near = kept_bits<kQuickError + 1>(u, t.v) & ~certain;
  return near ? certain | kept_among(near, logits, u) : certain;
}

// Lanes [i, i + kLanes) of a block's hard mask, from its bits.
inline i32v lanes_of(uint64_t bits, int i) {
#if defined(__AVX512DQ__)
  return i32v(_mm512_movm_epi32(__mmask16(bits >> i)));
#else
  u32v bit;
  for (int lane = 0; lane < kLanes; ++lane) bit[lane] = 1u << lane;
  return reinterpret_cast<i32v>(((uint32_t(bits >> i) - u32v{}) & bit) == bit);
#endif
}

// As above, lanes [i, i + 2 kLanes) as words of 16 bits.
inline u16w words_of(uint64_t bits, int i) {
#if defined(__AVX512BW__)
  return u16w(_mm512_movm_epi16(__mmask32(bits >> i)));
#else
  u16w bit;
  for (int lane = 0; lane < 2 * kLanes; ++lane) bit[lane] = uint16_t(1u << lane);
  const u32v twice = uint16_t(bits >> i) * 0x10001u - u32v{};  // GCC widens 32-bit scalars to vectors, but no shorter ones
  return reinterpret_cast<u16w>((reinterpret_cast<u16w>(twice) & bit) == bit);
#endif
}

inline uint64_t& word_of(Bits bits, const Masked& m, const Block& b) {
  return bits.data[b.row * bits.stride + int64_t(b.group - m.col / kGroup)];
}

}  // namespace
}  // namespace stochprune
