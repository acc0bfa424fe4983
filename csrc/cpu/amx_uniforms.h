// The contract's uniforms of one group in four rows at once; part of amx_impl.h.
#pragma once
#include "simd.h"

namespace stochprune {
namespace {

constexpr int64_t kUnitRows = 4;

#if defined(__AVX512BW__)

// The uniforms of one group in four rows: u[r][0] are columns 0..31 of row r. Eight calls of each row at once in 64-bit lanes,
// and four chains in flight. What rounds 1 to 3 compute from the column alone or from the row alone is computed once.
inline void uniforms_of_rows(const RoundKeys& key, uint32_t draw, uint32_t stream, uint32_t row, uint64_t group,
                             __m512i (&u)[kUnitRows][2]) {
  const __m512i m0 = _mm512_set1_epi64(kMul0), m1 = _mm512_set1_epi64(kMul1);
  const auto all = [](uint64_t word) { return _mm512_set1_epi64(int64_t(word)); };
  const __m512i call = _mm512_add_epi64(all(uint32_t(group << 3)), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
  const uint64_t by_draw = uint64_t(kMul1) * draw;
  const __m512i p0 = _mm512_mul_epu32(m0, call);  // round 1
  const __m512i p1 = _mm512_mul_epu32(m1, xor3(high_of(p0), all(stream), all(key.second[0])));  // round 2
  const __m512i q0 = _mm512_mul_epu32(m0, xor3(high_of(p1), all(uint32_t(by_draw)), all(key.first[1])));  // round 3
  __m512i c0[kUnitRows], c1[kUnitRows], c2[kUnitRows], c3[kUnitRows];
  for (int r = 0; r < kUnitRows; ++r) {
    const uint64_t by_row = kMul0 * ((by_draw >> 32) ^ (row + uint32_t(r)) ^ key.first[0]);  // round 2
    const __m512i q1 = _mm512_mul_epu32(m1, _mm512_xor_si512(p0, all((by_row >> 32) ^ key.second[1])));
    c0[r] = xor3(high_of(q1), p1, all(key.first[2]));
    c1[r] = q1;
    c2[r] = _mm512_xor_si512(high_of(q0), all(uint32_t(by_row) ^ key.second[2]));
    c3[r] = q0;
  }
  for (int i = 3; i < kRounds; ++i)
    for (int r = 0; r < kUnitRows; ++r) {
      const __m512i a = _mm512_mul_epu32(m0, c0[r]), b = _mm512_mul_epu32(m1, c2[r]);
      c0[r] = xor3(high_of(b), c1[r], all(key.first[i]));
      c2[r] = xor3(high_of(a), c3[r], all(key.second[i]));
      c1[r] = b;
      c3[r] = a;
    }
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  for (int r = 0; r < kUnitRows; ++r) {
    u[r][0] = _mm512_permutex2var_epi32(c0[r], even, c1[r]);
    u[r][1] = _mm512_permutex2var_epi32(c2[r], even, c3[r]);
  }
}

#endif

}  // namespace
}  // namespace stochprune
