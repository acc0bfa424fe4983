// A float as the sum of two bfloat16; part of amx_impl.h.
#pragma once
#include <utility>

#include "simd.h"

namespace stochprune {
namespace {

struct Parts {  // floats whose upper halves are the bfloat16; the lower half of `high` is zero, that of `low` is to be dropped
  u32v high, low;
};

// Both parts are rounded to nearest, ties away from zero: |x - high| <= 2^-8 |x| and |x - high - low| <= 2^-17 |x|, if x and
// its low part are neither denormal nor too large for bfloat16. If x is NaN or if x or its high part is infinite, a part is
// infinite or NaN, and so is every product with x.
STOCHPRUNE_INLINE Parts parts_of(f32v x) {
  const u32v high = (reinterpret_cast<u32v>(x) + 0x8000u) & 0xFFFF0000u;
  const f32v rest = x - reinterpret_cast<f32v>(high);
  const u32v low = reinterpret_cast<u32v>(rest);
  return {high, rest == rest ? low + 0x8000u : low};  // the addition would make a number of a NaN of all ones
}

// The parts of floats as two rows of bfloat16.
inline void store_parts(f32v x, uint16_t* high, uint16_t* low) {
  const Parts p = parts_of(x);
  store(high, __builtin_convertvector(p.high >> 16, u16v));
  store(low, __builtin_convertvector(p.low >> 16, u16v));
}

#if defined(__AVX512BW__)

// The upper halves of two vectors, one after the other.
template <int... I>
STOCHPRUNE_INLINE u16w halves_of(u32v a, u32v b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(reinterpret_cast<u16w>(a), reinterpret_cast<u16w>(b), (2 * I + 1)...);
}

// The upper halves of two vectors as the pairs (a[i], b[i]).
STOCHPRUNE_INLINE u32v pairs_of(u32v a, u32v b) { return a >> 16 | (b & 0xFFFF0000u); }

#endif

}  // namespace
}  // namespace stochprune
