// Vectors in GCC's portable syntax, and the random bits of 64 columns at a time.
//
// Each translation unit is compiled for one instruction set and includes this file once. Everything has internal linkage, so
// that no function compiled for a newer processor is used on an older one.
#pragma once
#include <cstdint>
#include <cstring>

#include "../common/philox.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define STOCHPRUNE_INLINE inline __attribute__((always_inline))

namespace stochprune {
namespace {

template <class T, int N>
struct vector_of {
  typedef T type __attribute__((vector_size(sizeof(T) * N), aligned(sizeof(T)), may_alias));
};
// Lanes of the widest float vector: the compiler splits a wider type into single lanes.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
using f32v = vector_of<float, kLanes>::type;
using i32v = vector_of<int32_t, kLanes>::type;
using u32v = vector_of<uint32_t, kLanes>::type;
using u16v = vector_of<uint16_t, kLanes>::type;
using u16w = vector_of<uint16_t, 2 * kLanes>::type;

template <class V, class T>
inline V load(const T* p) {
  return *reinterpret_cast<const V*>(p);
}

template <class V, class T>
inline void store(T* p, V v) {
  *reinterpret_cast<V*>(p) = v;
}

// A store past the caches, for results that are not read soon: it does not read the memory that it overwrites.
// Other threads see the values after a fence.
inline void stream(float* p, f32v v) {
#if defined(__AVX512F__)
  if (reinterpret_cast<uintptr_t>(p) % sizeof(f32v) == 0) return _mm512_stream_ps(p, __m512(v));
#elif defined(__AVX2__)
  if (reinterpret_cast<uintptr_t>(p) % sizeof(f32v) == 0) return _mm256_stream_ps(p, __m256(v));
#endif
  store(p, v);
}

inline void stream_fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

inline f32v splat(float x) { return x - f32v{}; }
inline f32v as_float(i32v v) { return reinterpret_cast<f32v>(v); }
inline i32v as_int(f32v v) { return reinterpret_cast<i32v>(v); }
inline f32v zero_unless(i32v mask, f32v a) { return as_float(mask & as_int(a)); }

// Bit i is set if lane i of the mask is set.
inline uint32_t lane_bits(i32v mask) {
#if defined(__AVX512DQ__)
  return _mm512_movepi32_mask(__m512i(mask));
#elif defined(__AVX2__)
  return uint32_t(_mm256_movemask_ps(__m256(mask)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= uint32_t(mask[i] & 1) << i;
  return bits;
#endif
}

inline f32v bf16_to_float(u16v v) { return as_float(reinterpret_cast<i32v>(__builtin_convertvector(v, u32v) << 16)); }

// The upper halves of `rounded`, which are the bits of floats after an addition; a float that was NaN remains NaN.
inline u16v upper_halves(u32v bits, u32v rounded) {
  const u32v nan = reinterpret_cast<u32v>((bits & 0x7FFFFFFFu) > 0x7F800000u);
  return __builtin_convertvector(((nan & (bits | 0x400000u)) | (~nan & rounded)) >> 16, u16v);
}

inline u16v float_to_bf16(f32v v) {  // rounds to nearest, ties to even
  const u32v bits = reinterpret_cast<u32v>(v);
  return upper_halves(bits, bits + 0x7FFFu + ((bits >> 16) & 1u));
}

inline u16v float_to_bf16(f32v v, u16v u) {  // rounds away from zero if the 16 bits that are dropped exceed 65535 - u
  const u32v bits = reinterpret_cast<u32v>(v);
  return upper_halves(bits, bits + __builtin_convertvector(u, u32v));
}

// exp(-a) for a >= 0 (a <= 80), relative error below 1e-7: Cody-Waite reduction and a polynomial of degree 6.
inline f32v exp_of_minus(f32v a) {
  const f32v magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const f32v shifted = a * -1.44269504088896341f + magic;
  const f32v n = shifted - magic;
  f32v r = -a - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  f32v p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return as_float(as_int(p) + (as_int(shifted) << 23));
}

// 1 / x, relative error below 2e-7.
inline f32v quick_reciprocal(f32v x) {
#if defined(__AVX512F__)  // half the cost of a division: an estimate of 14 bits and a Newton step
  const f32v e = f32v(_mm512_rcp14_ps(__m512(x)));
  return e * (2.0f - x * e);
#else
  return 1.0f / x;
#endif
}

inline f32v reciprocal(f32v x) {
  const f32v f = quick_reciprocal(x);
#if defined(__AVX512F__)
  return f + f * (1.0f - x * f);
#else
  return f;
#endif
}

struct Sigmoid {
  f32v value, slope;  // sigmoid(x) and its derivative
  f32v low;           // sigmoid(-|x|), at full relative precision
  i32v negative;
};

// |x|, at most 80; 80 for NaN. The bits of positive floats are ordered, NaN above all.
inline f32v magnitude(f32v x) {
  const i32v bits = as_int(x) & 0x7FFFFFFF, eighty = 0x42A00000 - i32v{};
  return as_float(bits < eighty ? bits : eighty);
}

inline Sigmoid sigmoid(f32v x) {
  const i32v negative = x < 0.0f;
  const f32v e = exp_of_minus(magnitude(x)), r = reciprocal(1.0f + e), low = e * r;
  return {negative ? low : r, low * r, low, negative};
}

inline f32v sigmoid_slope(f32v x) {
  const f32v e = exp_of_minus(magnitude(x)), r = quick_reciprocal(1.0f + e);
  return e * r * r;
}

// The keys of a seed's rounds.
struct RoundKeys {
  uint32_t first[kRounds], second[kRounds];
  explicit RoundKeys(uint64_t seed) {
    for (int i = 0; i < kRounds; ++i) {
      first[i] = uint32_t(seed) + uint32_t(i) * kWeyl0;
      second[i] = uint32_t(seed >> 32) + uint32_t(i) * kWeyl1;
    }
  }
};

// The uniforms of groups of 64 columns under one seed, draw and stream. Made once for many groups: what rounds 1 to 3 compute
// from the column or the row alone is computed apart.
#if defined(__AVX512F__) && defined(__AVX512BW__)

inline __m512i all_of(uint32_t word) { return _mm512_set1_epi64(word); }
inline __m512i high_of(__m512i product) { return _mm512_srli_epi64(product, 32); }
inline __m512i xor3(__m512i a, __m512i b, __m512i c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }

class Uniforms {
  const RoundKeys key_;
  const uint64_t by_draw_;
  const __m512i m0_ = all_of(kMul0), m1_ = all_of(kMul1), stream_, draw_;
  __m512i first_[kRounds], second_[kRounds];

 public:
  Uniforms(uint64_t seed, uint32_t draw, uint32_t stream)
      : key_(seed), by_draw_(uint64_t(kMul1) * draw), stream_(all_of(stream ^ key_.second[0])),
        draw_(all_of(uint32_t(by_draw_) ^ key_.first[1])) {
    for (int i = 0; i < kRounds; ++i) {
      first_[i] = all_of(key_.first[i]);
      second_[i] = all_of(key_.second[i]);
    }
  }

  // Eight calls at once in 64-bit lanes: a multiplication reads only the low halves, so the high halves may hold anything.
  STOCHPRUNE_INLINE void operator()(uint32_t row, uint64_t group, uint16_t* u) const {
    const __m512i call = _mm512_add_epi64(all_of(uint32_t(group << 3)), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
    const uint64_t by_row = uint64_t(kMul0) * (uint32_t(by_draw_ >> 32) ^ row ^ key_.first[0]);    // round 2
    const __m512i p0 = _mm512_mul_epu32(m0_, call);                                                // round 1
    const __m512i p1 = _mm512_mul_epu32(m1_, _mm512_xor_si512(high_of(p0), stream_));              // round 2
    const __m512i q0 = _mm512_mul_epu32(m0_, _mm512_xor_si512(high_of(p1), draw_));                // round 3
    const __m512i q1 = _mm512_mul_epu32(m1_, _mm512_xor_si512(p0, all_of(uint32_t(by_row >> 32) ^ key_.second[1])));
    __m512i c0 = xor3(high_of(q1), p1, first_[2]), c1 = q1;
    __m512i c2 = _mm512_xor_si512(high_of(q0), all_of(uint32_t(by_row) ^ key_.second[2])), c3 = q0;
    for (int i = 3; i < kRounds; ++i) {
      const __m512i a = _mm512_mul_epu32(m0_, c0), b = _mm512_mul_epu32(m1_, c2);
      c0 = xor3(high_of(b), c1, first_[i]);
      c2 = xor3(high_of(a), c3, second_[i]);
      c1 = b;
      c3 = a;
    }
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    _mm512_storeu_si512(u, _mm512_permutex2var_epi32(c0, even, c1));
    _mm512_storeu_si512(u + 32, _mm512_permutex2var_epi32(c2, even, c3));
  }
};

#elif defined(__AVX2__)

class Uniforms {
  const RoundKeys key_;
  const uint64_t by_draw_;
  const __m256i m0_ = all(kMul0), m1_ = all(kMul1), stream_, draw_;
  __m256i first_[kRounds], second_[kRounds];

  static __m256i all(uint32_t word) { return _mm256_set1_epi64x(word); }
  static __m256i high(__m256i product) { return _mm256_srli_epi64(product, 32); }
  static __m256i xor3(__m256i a, __m256i b, __m256i c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }

 public:
  Uniforms(uint64_t seed, uint32_t draw, uint32_t stream)
      : key_(seed), by_draw_(uint64_t(kMul1) * draw), stream_(all(stream ^ key_.second[0])),
        draw_(all(uint32_t(by_draw_) ^ key_.first[1])) {
    for (int i = 0; i < kRounds; ++i) {
      first_[i] = all(key_.first[i]);
      second_[i] = all(key_.second[i]);
    }
  }

  // As above, calls 0..3 in `x` and 4..7 in `y`.
  STOCHPRUNE_INLINE void operator()(uint32_t row, uint64_t group, uint16_t* u) const {
    const __m256i call = _mm256_add_epi64(all(uint32_t(group << 3)), _mm256_setr_epi64x(0, 1, 2, 3));
    const uint64_t by_row = uint64_t(kMul0) * (uint32_t(by_draw_ >> 32) ^ row ^ key_.first[0]);
    const __m256i upper = all(uint32_t(by_row >> 32) ^ key_.second[1]), lower = all(uint32_t(by_row) ^ key_.second[2]);
    struct Calls {
      __m256i c[4];
    };
    const auto start = [&](__m256i at) {
      const __m256i p0 = _mm256_mul_epu32(m0_, at), p1 = _mm256_mul_epu32(m1_, _mm256_xor_si256(high(p0), stream_));
      const __m256i q0 = _mm256_mul_epu32(m0_, _mm256_xor_si256(high(p1), draw_));
      const __m256i q1 = _mm256_mul_epu32(m1_, _mm256_xor_si256(p0, upper));
      return Calls{{xor3(high(q1), p1, first_[2]), q1, _mm256_xor_si256(high(q0), lower), q0}};
    };
    Calls x = start(call), y = start(_mm256_add_epi64(call, all(4)));
    const auto round = [&](Calls& z, int i) {
      const __m256i a = _mm256_mul_epu32(m0_, z.c[0]), b = _mm256_mul_epu32(m1_, z.c[2]);
      z = {{xor3(high(b), z.c[1], first_[i]), b, xor3(high(a), z.c[3], second_[i]), a}};
    };
    for (int i = 3; i < kRounds; ++i) {
      round(x, i);
      round(y, i);
    }
    for (int s = 0; s < 4; ++s) {  // the even words of both, in order
      const __m256i mixed = __m256i(_mm256_shuffle_ps(__m256(x.c[s]), __m256(y.c[s]), 0x88));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(u + 16 * s), _mm256_permute4x64_epi64(mixed, 0xD8));
    }
  }
};

#else

class Uniforms {
  const uint64_t seed_;
  const uint32_t draw_, stream_;

 public:
  Uniforms(uint64_t seed, uint32_t draw, uint32_t stream) : seed_(seed), draw_(draw), stream_(stream) {}

  void operator()(uint32_t row, uint64_t group, uint16_t* u) const {
    for (uint32_t call = 0; call < 8; ++call) {
      const Words w = group_call(seed_, draw_, stream_, row, group, call);
      for (int s = 0; s < 4; ++s) {
        u[16 * s + 2 * call] = uint16_t(w.w[s]);
        u[16 * s + 2 * call + 1] = uint16_t(w.w[s] >> 16);
      }
    }
  }
};

#endif

}  // namespace
}  // namespace stochprune
