// The contract's standard normals, for host and device compilers. See stochprune/rng.py for the text.
#pragma once
#include <cmath>

#include "philox.h"

namespace stochprune {

constexpr uint32_t kNormalStream = 0x80000000u;  // set in the stream, so that no mask uses these words

// (w >> 9 + 1/2) / 2^23, in (0, 1) and exact.
STOCHPRUNE_HD float open_unit(uint32_t w) { return (float(w >> 9) + 0.5f) * 0x1p-23f; }

STOCHPRUNE_HD float normal(uint64_t seed, uint32_t draw, uint32_t stream, uint32_t row, uint64_t col) {
  const Words ctr = {{uint32_t(col >> 6 << 4) | uint32_t(col & 15), row, draw, stream | kNormalStream}};
  const Words w = philox4x32(ctr, uint32_t(seed), uint32_t(seed >> 32));
  const int pair = int(col >> 5 & 1) * 2;
  const float radius = sqrtf(-2.0f * logf(open_unit(w.w[pair])));
  // The angle in turns, reduced to the nearest quarter. The remainder is exact, so that no digits cancel near a zero.
  const uint32_t turn = w.w[pair + 1] >> 9, nearest = (turn + (1u << 20)) >> 21;
  const float rest = (float(int32_t(turn - (nearest << 21))) + 0.5f) * 7.4901406e-7f;  // 2 pi / 2^23
  const uint32_t quarter = nearest - uint32_t(col >> 4 & 1);                           // sin(a) = cos(a - 1/4 turn)
  const float value = quarter & 1 ? sinf(rest) : cosf(rest);
  return (quarter + 1) & 2 ? -radius * value : radius * value;
}

}  // namespace stochprune
