// Activations as tiles; part of amx_impl.h.
#pragma once
#include <utility>

#include "amx.h"
#include "simd.h"

namespace stochprune {
namespace {

using Words16 = vector_of<uint32_t, 16>::type;

// Exchanges the off-diagonal quarters of every square of 2 S x 2 S words.
template <int S, int... I>
inline void exchange(Words16 (&row)[16], std::integer_sequence<int, I...>) {
  for (int i = 0; i < 16; ++i) {
    if (i & S) continue;
    const Words16 a = row[i], b = row[i + S];
    row[i] = __builtin_shufflevector(a, b, (I & S ? 16 + I - S : I)...);
    row[i + S] = __builtin_shufflevector(a, b, (I & S ? 16 + I : I + S)...);
  }
}

inline void transpose(const uint32_t* from, uint32_t* to) {
  const std::make_integer_sequence<int, 16> lanes{};
  Words16 row[16];
  for (int i = 0; i < 16; ++i) row[i] = load<Words16>(from + 16 * i);
  exchange<1>(row, lanes);
  exchange<2>(row, lanes);
  exchange<4>(row, lanes);
  exchange<8>(row, lanes);
  for (int i = 0; i < 16; ++i) store(to + 16 * i, row[i]);
}

// Some features of one example; zero outside the matrix.
inline void read_row(const Packing& p, int64_t draw, int64_t example, int64_t feature, int64_t count, uint16_t* to) {
  const uint16_t* from = p.from + (draw * p.examples + example) * p.features;
  if (example < p.examples && feature >= 0 && feature + count <= p.features) {
    std::memcpy(to, from + feature, size_t(count) * 2);
  } else {
    for (int64_t i = 0; i < count; ++i) {
      const bool inside = example < p.examples && feature + i >= 0 && feature + i < p.features;
      to[i] = inside ? from[feature + i] : 0;
    }
  }
}

inline void pack_tile(const Packing& p, int64_t draw, int64_t column, int64_t row, uint32_t* words) {
  for (int64_t r = 0; r < kTile; ++r, words += kTile) {
    if (!p.pairs_of_examples) {
      uint16_t pairs[kDeep];  // neighbours in memory are the pairs
      read_row(p, draw, row * kTile + r, column * kDeep - p.lead, kDeep, pairs);
      std::memcpy(words, pairs, sizeof pairs);
    } else {
      uint16_t first[kTile], second[kTile];
      read_row(p, draw, row * kDeep + 2 * r, column * kTile - p.lead, kTile, first);
      read_row(p, draw, row * kDeep + 2 * r + 1, column * kTile - p.lead, kTile, second);
      for (int i = 0; i < kTile; ++i) words[i] = first[i] | uint32_t(second[i]) << 16;
    }
  }
}

void pack(const Packing& p, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    const int64_t draw = i / p.to.across, column = i % p.to.across;
    for (int64_t row = 0; row < p.to.down; ++row) {
      uint32_t* to = p.to.at(draw, column, row);
      if (p.transposed) {
        alignas(64) uint32_t words[kTileWords];
        pack_tile(p, draw, column, row, words);
        transpose(words, to);
      } else {
        pack_tile(p, draw, column, row, to);
      }
    }
  }
}

}  // namespace
}  // namespace stochprune
