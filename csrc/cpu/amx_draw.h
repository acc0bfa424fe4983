// Samples a block of the masked weight as tiles; part of amx_impl.h.
//
// A unit is 4 rows x 64 columns: one group of the contract in four rows. Whole units under hard masks, of weights with the dtype
// of the activations, are sampled here with AVX-512, other units by the kernels of the instruction set.
#pragma once
#include <type_traits>
#include <utility>

#include "amx.h"
#include "amx_parts.h"
#include "amx_uniforms.h"
#include "decide.h"

namespace stochprune {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

struct Item {  // one block of the masked weight under one draw
  int64_t panel, depth, block, draw;  // the first block of its panel, its place along the sum, and among the outputs
};

template <class M>  // matrices and thresholds
inline M moved(M m, int64_t row, int64_t col) {
  const int64_t at = row * m.stride + col;
  if constexpr (requires { m.dtype; }) {
    using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(m.data)>>, const char, char>;
    if (m.data) m.data = static_cast<Byte*>(m.data) + at * (m.dtype == DType::f32 ? 4 : 2);
  } else if (m.data) {
    m.data += at;
  }
  return m;
}

// Some rows and columns of the weight under one draw.
inline Masked part_of(Masked m, int64_t draw, int64_t row, int64_t col, Shape shape) {
  m.shape = shape;
  m.draw += draw;
  m.draws = 1;
  m.row += uint64_t(row);
  m.col += uint64_t(col);
  m.weight = moved(m.weight, row, col);
  m.logits = moved(m.logits, row, col);
  m.thresholds = moved(m.thresholds, row, col);
  return m;
}

// The columns of the weight among `count` columns from `first` on, counted from the first group of the contract.
struct Columns {
  int64_t begin, end;  // counted from `first`
  Columns(const Masked& m, int64_t lead, int64_t first, int64_t count)
      : begin(lead > first ? lead - first : 0), end(smaller(count, lead + m.shape.cols - first)) {}
  int64_t count() const { return end - begin; }
};

// A block of the masked weight in tiles. Forward, it lies row by row; for dx, two rows of the weight become one row of pairs.
template <bool Pairs, int kParts>
struct BlockTiles {
  static constexpr BlockOf kBlock = Pairs ? input_block(kParts) : forward_block(kParts);
  static constexpr int64_t kGroups = kBlock.cols / kGroup, kUnits = kBlock.rows / kUnitRows * kGroups;
  static constexpr int64_t kWide = Pairs ? 2 * kBlock.cols : kBlock.cols;  // values in a row
  static constexpr int64_t kLow = kBlock.rows * kBlock.cols;               // values before the low parts

  static uint16_t* unit(uint16_t* block, int64_t unit) {
    const int64_t quad = unit / kGroups, group = unit % kGroups;
    return block + (Pairs ? 2 * quad * kWide + 2 * kGroup * group : 4 * quad * kWide + kGroup * group);
  }

  // Writes one part of a unit.
  static void place(const uint16_t (&values)[kUnitRows][kGroup], uint16_t* to) {
    if constexpr (Pairs) {
      for (int pair = 0; pair < kUnitRows / 2; ++pair)
        for (int i = 0; i < kGroup; ++i) {
          to[pair * kWide + 2 * i] = values[2 * pair][i];
          to[pair * kWide + 2 * i + 1] = values[2 * pair + 1][i];
        }
    } else {
      for (int r = 0; r < kUnitRows; ++r) std::memcpy(to + r * kWide, values[r], sizeof values[r]);
    }
  }
};

#if defined(__AVX512BW__)

// to [32, 2] = the pairs (a[i], b[i]) of two rows.
template <int... I>
inline void interleave(__m512i a, __m512i b, uint16_t* to, std::integer_sequence<int, I...>) {
  using Row = vector_of<uint16_t, 32>::type;
  const Row x = Row(a), y = Row(b);
  store(to, __builtin_shufflevector(x, y, (I / 2 + I % 2 * 32)...));
  store(to + 32, __builtin_shufflevector(x, y, (16 + I / 2 + I % 2 * 32)...));
}

[[gnu::noinline]] uint64_t kept_by_logits(const Masked& m, int64_t row, int64_t col, const __m512i (&u)[2], NanWatch& nan) {
  Buffer<uint16_t> uniforms;
  Buffer<float> copy;
  for (int h = 0; h < 2; ++h) _mm512_store_si512(uniforms.v + 32 * h, u[h]);
  return kept_by_logits(read(m.logits, Block{row, col, 0, kGroup, 0}, copy), uniforms.v, nan);
}

// Writes row r of a unit, masked by its bits, as bfloat16; as pairs, once both of their rows are there.
template <bool Pairs>
STOCHPRUNE_INLINE void write_half(const uint16_t* weights, uint64_t bits, int r, __m512i (&w)[kUnitRows][2], uint16_t* to) {
  constexpr int64_t kWide = BlockTiles<Pairs, 1>::kWide;
  for (int h = 0; h < 2; ++h) {
    w[r][h] = _mm512_maskz_loadu_epi16(__mmask32(bits >> (32 * h)), weights + 32 * h);
    if constexpr (!Pairs) _mm512_storeu_si512(to + r * kWide + 32 * h, w[r][h]);
  }
  if (Pairs && r % 2 == 1)
    for (int h = 0; h < 2; ++h)
      interleave(w[r - 1][h], w[r][h], to + r / 2 * kWide + 64 * h, std::make_integer_sequence<int, 32>{});
}

// The same of floats, in two parts.
template <bool Pairs>
STOCHPRUNE_INLINE void write_parts(const float* weights, uint64_t bits, int r, Parts (&w)[kUnitRows][4], uint16_t* to) {
  using Layout = BlockTiles<Pairs, 2>;
  for (int q = 0; q < 4; ++q)
    w[r][q] = parts_of(f32v(_mm512_maskz_loadu_ps(__mmask16(bits >> (16 * q)), weights + 16 * q)));
  if constexpr (!Pairs) {
    const std::make_integer_sequence<int, 32> lanes{};
    for (int h = 0; h < 2; ++h) {
      uint16_t* const at = to + r * Layout::kWide + 32 * h;
      store(at, halves_of(w[r][2 * h].high, w[r][2 * h + 1].high, lanes));
      store(at + Layout::kLow, halves_of(w[r][2 * h].low, w[r][2 * h + 1].low, lanes));
    }
  } else if (r % 2 == 1) {
    for (int q = 0; q < 4; ++q) {
      uint16_t* const at = to + r / 2 * Layout::kWide + 32 * q;
      store(at, pairs_of(w[r - 1][q].high, w[r][q].high));
      store(at + Layout::kLow, pairs_of(w[r - 1][q].low, w[r][q].low));
    }
  }
}

// A whole unit of weights under the hard mask of one draw, at a row and a column of the weight. Its thresholds and its bits are
// given by their first row.
template <bool Pairs, int kParts>
inline void draw_whole(const Masked& m, const RoundKeys& key, const Item& item, int64_t row, int64_t col, Thresholds levels,
                       Bits kept, uint16_t* to, NanWatch& nan) {
  using Number = std::conditional_t<kParts == 1, uint16_t, float>;
  __m512i u[kUnitRows][2];
  const uint64_t group = (m.col + uint64_t(col)) / kGroup;
  uniforms_of_rows(key, uint32_t(m.draw[item.draw]), m.stream, uint32_t(m.row + uint64_t(row)), group, u);
  const __m512i low = _mm512_set1_epi16(0x7FFF);
  const Number* weights = static_cast<const Number*>(m.weight.data) + row * m.weight.stride + col;
  [[maybe_unused]] __m512i halves[kUnitRows][2];
  [[maybe_unused]] Parts parts[kUnitRows][4];
  for (int r = 0; r < kUnitRows; ++r) {
    const auto under = [&](int h) {
      const __m512i t = _mm512_loadu_si512(levels.data + r * levels.stride + 32 * h);
      return uint64_t(_mm512_cmplt_epu16_mask(_mm512_and_si512(u[r][h], low), t)) << (32 * h);
    };
    const uint64_t bits = levels.data ? under(0) | under(1) : kept_by_logits(m, row + r, col, u[r], nan);
    if (kept.data) kept.data[r * kept.stride] = bits;
    if constexpr (kParts == 1) {
      write_half<Pairs>(weights + r * m.weight.stride, bits, r, halves, to);
    } else {
      write_parts<Pairs>(weights + r * m.weight.stride, bits, r, parts, to);
    }
  }
}

#endif

// Samples the units of blocks one after the other.
template <bool Pairs, int kParts>
class Drawing {
  using Layout = BlockTiles<Pairs, kParts>;
  static constexpr BlockOf kBlock = Layout::kBlock;
  static constexpr int64_t kGroups = Layout::kGroups;
  static constexpr DType kDType = kParts == 1 ? DType::bf16 : DType::f32;  // of the activations

  const Kernels& kernels_;
  const TileProduct& p_;
  const RoundKeys key_;
  const bool form_once_;  // the thresholds of a block for several draws
  const bool fast_;
  uint16_t* levels_;
  bool nan_ = false;
  NanWatch watch_;

  Bits kept(const Item& item, int64_t row, int64_t group) const {
    Bits b = p_.kept;
    if (b.data) b.data += (item.draw * p_.masked.shape.rows + row) * b.stride + group;
    return b;
  }

  // A unit by the kernels of the instruction set: zero outside the weight.
  [[gnu::noinline]] void draw_part(const Item& item, int64_t row, int64_t group, uint16_t* formed, uint16_t* to) {
    const Masked& m = p_.masked;
    const int64_t rows = smaller(kUnitRows, m.shape.rows - row), first = group * kGroup;
    const Columns columns(m, p_.lead, first, kGroup);
    std::conditional_t<kParts == 1, uint16_t, float> values[kUnitRows][kGroup] = {};
    if (rows > 0 && columns.count() > 0) {
      Masked part = part_of(m, item.draw, row, first + columns.begin - p_.lead, {rows, columns.count()});
      if (form_once_) {
        if (item.draw == 0) nan_ |= kernels_.thresholds(part.shape, part.logits, formed);
        part.thresholds = {formed, columns.count()};
      }
      nan_ |= kernels_.masked_weight(part, {&values[0][columns.begin], kGroup, kDType}, kept(item, row, group));
    }
    if constexpr (kParts == 1) {
      Layout::place(values, to);
    } else {
      uint16_t parts[kParts][kUnitRows][kGroup];
      for (int r = 0; r < kUnitRows; ++r)
        for (int i = 0; i < kGroup; i += kLanes) store_parts(load<f32v>(values[r] + i), parts[0][r] + i, parts[1][r] + i);
      for (int part = 0; part < kParts; ++part) Layout::place(parts[part], to + part * Layout::kLow);
    }
  }

 public:
  static constexpr int64_t kUnits = Layout::kUnits;

  Drawing(const Kernels& kernels, const TileProduct& p, char* levels)
      : kernels_(kernels), p_(p), key_(uint64_t(*p.masked.seed)),
        form_once_(has_hard_mask(p.masked) && p.masked.draws > 1 && !p.masked.thresholds.data),
        fast_(has_hard_mask(p.masked) && p.masked.weight.dtype == kDType), levels_(reinterpret_cast<uint16_t*>(levels)) {}

  bool found_nan() const { return nan_ || watch_.found(); }

  // Not inlined, so that the loop around the products keeps its registers.
  [[gnu::noinline]] void unit(const Item& item, int64_t unit, uint16_t* block) {
    const int64_t row = (Pairs ? item.depth : item.block) * kBlock.rows + unit / kGroups * kUnitRows;
    const int64_t group = (Pairs ? item.block : item.depth) * kGroups + unit % kGroups;
    uint16_t* const to = Layout::unit(block, unit);
    uint16_t* const formed = levels_ + unit * kUnitRows * kGroup;
#if defined(__AVX512BW__)
    const Masked& m = p_.masked;
    const int64_t col = group * kGroup - p_.lead;
    if (fast_ && row + kUnitRows <= m.shape.rows && col >= 0 && col + kGroup <= m.shape.cols) {
      Thresholds levels = moved(m.thresholds, row, col);
      if (form_once_) {
        if (item.draw == 0) nan_ |= kernels_.thresholds({kUnitRows, kGroup}, moved(m.logits, row, col), formed);
        levels = {formed, kGroup};
      }
      return draw_whole<Pairs, kParts>(m, key_, item, row, col, levels, kept(item, row, group), to, watch_);
    }
#endif
    draw_part(item, row, group, formed, to);
  }
};

}  // namespace
}  // namespace stochprune
