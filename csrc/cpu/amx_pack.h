// Activations as tiles; part of amx_impl.h.
#pragma once
#include <type_traits>
#include <utility>

#include "amx.h"
#include "amx_parts.h"

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

// Some features of one example, in parts; zero outside the matrix.
template <int kParts>
inline void read_row(const Packing& p, int64_t draw, int64_t example, int64_t feature, int64_t count,
                     uint16_t (&to)[kParts][kDeep]) {
  using Number = std::conditional_t<kParts == 1, uint16_t, float>;
  const Number* from = static_cast<const Number*>(p.from) + (draw * p.examples + example) * p.features;
  [[maybe_unused]] Number numbers[kDeep];
  Number* values;
  if constexpr (kParts == 1) {
    values = to[0];
  } else {
    values = numbers;
  }
  if (example < p.examples && feature >= 0 && feature + count <= p.features) {
    std::memcpy(values, from + feature, size_t(count) * sizeof(Number));
  } else {
    for (int64_t i = 0; i < count; ++i) {
      const bool inside = example < p.examples && feature + i >= 0 && feature + i < p.features;
      values[i] = inside ? from[feature + i] : Number(0);
    }
  }
  if constexpr (kParts == 2) {
    for (int64_t i = 0; i < count; i += kLanes) store_parts(load<f32v>(values + i), to[0] + i, to[1] + i);
  }
}

template <int kParts>
inline void pack_tile(const Packing& p, int64_t draw, int64_t column, int64_t row, uint32_t* const (&words)[kParts]) {
  for (int64_t r = 0; r < kTile; ++r) {
    const int64_t at = r * kTile;
    uint16_t first[kParts][kDeep], second[kParts][kDeep];
    if (!p.pairs_of_examples) {  // neighbours in memory are the pairs
      read_row(p, draw, row * kTile + r, column * kDeep - p.lead, kDeep, first);
      for (int part = 0; part < kParts; ++part) std::memcpy(words[part] + at, first[part], sizeof first[part]);
    } else {
      read_row(p, draw, row * kDeep + 2 * r, column * kTile - p.lead, kTile, first);
      read_row(p, draw, row * kDeep + 2 * r + 1, column * kTile - p.lead, kTile, second);
      for (int part = 0; part < kParts; ++part)
        for (int i = 0; i < kTile; ++i) words[part][at + i] = first[part][i] | uint32_t(second[part][i]) << 16;
    }
  }
}

template <int kParts>
void pack_as(const Packing& p, int64_t first, int64_t last) {
  alignas(64) uint32_t turned[kParts][kTileWords];
  for (int64_t i = first; i < last; ++i) {
    const int64_t draw = i / p.to.across, column = i % p.to.across;
    for (int64_t row = 0; row < p.to.down; ++row) {
      uint32_t *to[kParts], *words[kParts];
      for (int part = 0; part < kParts; ++part) {
        to[part] = p.to.at(draw, column, row) + part * p.to.part_words();
        words[part] = p.transposed ? turned[part] : to[part];
      }
      pack_tile(p, draw, column, row, words);
      for (int part = 0; p.transposed && part < kParts; ++part) transpose(turned[part], to[part]);
    }
  }
}

void pack(const Packing& p, int64_t first, int64_t last) {
  p.to.parts == 1 ? pack_as<1>(p, first, last) : pack_as<2>(p, first, last);
}

}  // namespace
}  // namespace stochprune
