// Vectors of doubles, their exponential and logarithm, for the sums of a certificate.
#pragma once
#include <initializer_list>

#include "simd.h"

namespace stochprune {
namespace {

constexpr int kDoubles = kLanes / 2;
using f64v = vector_of<double, kDoubles>::type;
using i64v = vector_of<int64_t, kDoubles>::type;
using u64v = vector_of<uint64_t, kDoubles>::type;

inline f64v widen(const float* p) {
  return __builtin_convertvector(load<vector_of<float, kDoubles>::type>(p), f64v);
}

inline f64v widen(const uint16_t* p) {
  using u16h = vector_of<uint16_t, kDoubles>::type;
  return __builtin_convertvector(__builtin_convertvector(load<u16h>(p), vector_of<int32_t, kDoubles>::type), f64v);
}

inline void narrow(float* p, f64v v) { store(p, __builtin_convertvector(v, vector_of<float, kDoubles>::type)); }

inline f64v splat(double x) { return x - f64v{}; }
inline f64v as_double(u64v v) { return reinterpret_cast<f64v>(v); }
inline u64v bits_of(f64v v) { return reinterpret_cast<u64v>(v); }
inline f64v magnitude(f64v v) { return as_double(bits_of(v) & 0x7FFFFFFFFFFFFFFFu); }

constexpr double kLn2High = 6.93147180369123816490e-01;  // 32 bits: its products with exponents are exact
constexpr double kLn2Low = 1.90821492927058770002e-10;

// exp(-a) for a >= 0 (a <= 700) within 2 ulp: reduction to |r| <= ln(2) / 2 and the series up to r^13 / 13!.
inline f64v double_exp_of_minus(f64v a) {
  constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
  a = a < 700.0 ? a : splat(700.0);
  const f64v shifted = a * -1.44269504088896340736 + kMagic, n = shifted - kMagic;
  const f64v r = (-a - n * kLn2High) - n * kLn2Low;
  f64v p = splat(1.0 / 6227020800.0);
#pragma GCC unroll 13
  for (const double factorial : {479001600.0, 39916800.0, 3628800.0, 362880.0, 40320.0, 5040.0, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0})
    p = p * r + 1.0 / factorial;
  return as_double(bits_of(p) + (bits_of(shifted) << 52));
}

// ln y for positive normal y within 2 ulp: y = 2^k m with m in [sqrt(1/2), sqrt(2)), and ln m = 2 artanh((m-1)/(m+1)).
inline f64v double_log(f64v y) {
  constexpr uint64_t kOne = 0x3FF0000000000000u, kRootHalf = 0x3FE6A09E667F3BCDu, kTwo52 = 0x4330000000000000u;
  const u64v shifted = (bits_of(y) + (kOne - kRootHalf)) >> 52;  // k + 1023
  const f64v k = as_double(shifted | kTwo52) - (4503599627370496.0 + 1023.0);
  const f64v m = as_double(bits_of(y) - (shifted << 52) + kOne);
  const f64v z = (m - 1.0) / (m + 1.0), w = z * z;
  f64v p = splat(2.0 / 21.0);
#pragma GCC unroll 9
  for (const double odd : {19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0}) p = p * w + 2.0 / odd;
  return k * kLn2High + (2.0 * z + (z * w * p + k * kLn2Low));
}

}  // namespace
}  // namespace stochprune
