// The kernels of one tile unit: masked products whose masks are sampled while the tiles before them are multiplied.
//
// Sampling needs the vector ports and multiplying the tile unit, so that a processor which executes out of order overlaps them
// if they lie close to each other in the program: between the products of one block, the units of the next one are sampled.
#pragma once
#include "amx_draw.h"
#include "amx_pack.h"
#include "amx_unit.h"

namespace stochprune {
namespace {

// Runs part(0), part(1), .. part(parts - 1), spread over `steps` calls of step().
template <class F>
class Spread {
  F& part_;
  const int64_t parts_, steps_;
  int64_t budget_ = 0, next_ = 0;

 public:
  Spread(int64_t parts, int64_t steps, F& part) : part_(part), parts_(parts), steps_(steps) {}
  void step() {
    for (budget_ += parts_; budget_ >= steps_; budget_ -= steps_) part_(next_++);
  }
};

// Records whether a sum is infinite or NaN. With two parts it is if an operand is, or if the high part of an operand is.
class FiniteWatch {
  NanWatch largest_;

 public:
  void see(f32v x) { largest_.see(x); }
  bool failed() const { return lane_bits(largest_.largest >= 0x7F800000) != 0; }
};

// The order of the blocks: all draws of one block, all blocks of a panel, all steps along the sum, all panels.
struct Walk {
  int64_t draws, panel, last, depths;

  bool advance(Item& i) const {
    if (++i.draw < draws) return true;
    i.draw = 0;
    if (++i.block < smaller(i.panel + panel, last)) return true;
    i.block = i.panel;
    if (++i.depth < depths) return true;
    i.depth = 0;
    i.block = i.panel += panel;
    return i.panel < last;
  }
};

// A product whose masked operand is A, with the outputs as rows (forward), or B, with the outputs as columns (dx).
template <bool Input, int kParts>
class MaskedProduct {
  using Layout = BlockTiles<Input, kParts>;
  static constexpr BlockOf kBlock = Layout::kBlock;
  static constexpr int64_t kOutputs = Input ? kBlock.cols : kBlock.rows, kSum = Input ? kBlock.rows : kBlock.cols;
  using Number = std::conditional_t<kParts == 1, uint16_t, float>;

  const TileProduct& p_;
  const int64_t outputs_, sum_;                // sizes of the whole product, with the lead
  const int64_t pairs_ = ceil_div(p_.examples, kDeep);  // of tiles of examples
  char* scratch_;
  Drawing<Input, kParts> drawing_;
  FiniteWatch finite_;
  TileUnit tiles_;

  uint16_t* block(int which) { return reinterpret_cast<uint16_t*>(scratch_ + which * kBlockBytes); }

  // 2 x 2 tiles of float, C [output, example] or C [example, output]: those of output o and of example tile e are at 2 o + e.
  float* accumulator(const Item& i, int64_t output_pair, int64_t example_pair) {
    const int64_t slot = (i.block - i.panel) * p_.masked.draws + i.draw;
    const int64_t at = (slot * pairs_ + example_pair) * (kOutputs / kDeep) + output_pair;
    return reinterpret_cast<float*>(scratch_ + kThreadBytes) + at * 4 * kTileWords;
  }

  int64_t output_pairs(const Item& i) const { return ceil_div(smaller(kOutputs, outputs_ - i.block * kOutputs), kDeep); }
  int64_t depth_tiles(const Item& i) const { return ceil_div(smaller(kSum, sum_ - i.depth * kSum), kDeep); }

  template <class F>
  void multiply(const Item& item, const uint16_t* masked, F& spread) {
    const int64_t depth = depth_tiles(item), first = item.depth * (kSum / kDeep);
    const int64_t low = 4 * p_.activations.part_words(), column = p_.activations.column_words();
    for (int64_t e = 0; e < pairs_; ++e)
      for (int64_t o = 0; o < output_pairs(item); ++o) {
        float* sums = accumulator(item, o, e);
        item.depth == 0 ? zero_sums(tiles_) : load_sums(tiles_, sums);
        // A tile of the block is 16 rows of 32 values; the next output's lies below (A) or beside (B).
        constexpr int64_t below = kTile * Layout::kWide, beside = kDeep;
        const uint16_t* weights = masked + o * 2 * (Input ? beside : below);
        const uint32_t* x = p_.activations.at(item.draw, first, 2 * e);
        for (int64_t t = 0; t < depth; ++t, weights += Input ? below : beside, x += column) {
          const TwoTiles a{weights, 2 * Layout::kWide, 2 * (Input ? beside : below), 2 * Layout::kLow};
          add_products<kParts, Input>(tiles_, a, TwoTiles{x, 64, 4 * kTileWords, low}, [&] { spread.step(); });
        }
        store_sums(tiles_, sums);
      }
  }

  // Writes the sums of a block, after adding the bias.
  void finish(const Item& item) {
    const int64_t width = outputs_ - p_.lead * Input, lead = Input ? p_.lead : 0;
    for (int64_t o = 0; o < 2 * output_pairs(item); ++o) {
      const int64_t first = item.block * kOutputs + o * kTile - lead;  // the tile's first output
      const int64_t begin = first < 0 ? smaller(-first, kTile) : 0, end = smaller(kTile, width - first);
      if (begin >= end) continue;
      alignas(64) float bias[kTile] = {}, values[kTileWords];
      for (int64_t i = begin; p_.bias.data && i < end; ++i) bias[i] = value_of(p_.bias, first + i);
      for (int64_t e = 0; e < 2 * pairs_; ++e) {
        const float* sums = accumulator(item, o / 2, e / 2) + (o % 2 * 2 + e % 2) * kTileWords;
        if constexpr (!Input) {
          transpose(reinterpret_cast<const uint32_t*>(sums), reinterpret_cast<uint32_t*>(values));
          sums = values;
        }
        for (int64_t r = 0; r < smaller(kTile, p_.examples - e * kTile); ++r) {
          Number row[kTile];
          for (int64_t i = 0; i < kTile; i += kLanes) {
            const f32v sum = load<f32v>(sums + r * kTile + i);
            if constexpr (kParts == 2) finite_.see(sum);
            write_number(row + i, sum + load<f32v>(bias + i));
          }
          Number* to = static_cast<Number*>(p_.out) + (item.draw * p_.examples + e * kTile + r) * width + first + begin;
          std::memcpy(to, row + begin, size_t(end - begin) * sizeof(Number));
        }
      }
    }
  }

  static void write_number(uint16_t* to, f32v x) { store(to, float_to_bf16(x)); }
  static void write_number(float* to, f32v x) { store(to, x); }

  static float value_of(ConstMatrix m, int64_t i) {
    if (m.dtype == DType::f32) return static_cast<const float*>(m.data)[i];
    const uint32_t bits = uint32_t(static_cast<const uint16_t*>(m.data)[i]) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  }

 public:
  MaskedProduct(const Kernels& kernels, const TileProduct& p, char* scratch)
      : p_(p), outputs_(Input ? p.masked.shape.cols + p.lead : p.masked.shape.rows),
        sum_(Input ? p.masked.shape.rows : p.masked.shape.cols + p.lead), scratch_(scratch),
        drawing_(kernels, p, scratch + 2 * kBlockBytes) {}

  Found run(int64_t first, int64_t last) {
    const Walk walk{p_.masked.draws, p_.panel, last, ceil_div(sum_, kSum)};
    Item now{first, 0, first, 0};
    for (int64_t u = 0; u < drawing_.kUnits; ++u) drawing_.unit(now, u, block(0));
    int turn = 0;
    for (bool more = true; more; turn ^= 1) {
      Item next = now;
      more = walk.advance(next);
      const auto draw = [&, to = block(turn ^ 1)](int64_t u) { drawing_.unit(next, u, to); };
      const int64_t steps = pairs_ * output_pairs(now) * depth_tiles(now) * products_of(kParts);
      Spread spread(more ? drawing_.kUnits : 0, steps, draw);
      multiply(now, block(turn), spread);
      if (now.depth == walk.depths - 1) finish(now);
      now = next;
    }
    return {drawing_.found_nan(), finite_.failed()};
  }
};

template <bool Input>
Found masked_product(const Kernels& k, const TileProduct& p, int64_t first, int64_t last, char* scratch) {
  return p.activations.parts == 1 ? MaskedProduct<Input, 1>(k, p, scratch).run(first, last)
                                  : MaskedProduct<Input, 2>(k, p, scratch).run(first, last);
}

// grad^T x in blocks of float, which the kernel of the instruction set turns into the gradients of weight and logits.
template <int kParts>
class WeightGrad {
  const Kernels& kernels_;
  const TileGrad& p_;
  char* scratch_;
  FiniteWatch finite_;
  TileUnit tiles_;

  float* block(int which) { return reinterpret_cast<float*>(scratch_ + which * kBlockBytes); }

  int64_t pairs_of_columns(const Item& i) const {
    return ceil_div(smaller(kGradient.cols, p_.masked.shape.cols + p_.lead - i.block * kGradient.cols), kDeep);
  }

  template <class F>
  void multiply(const Item& item, float* to, F& spread) {
    const int64_t rows = 4 * p_.grad.column_words(), low_of_grad = 4 * p_.grad.part_words();
    const int64_t columns = 4 * p_.x.column_words(), low_of_x = 4 * p_.x.part_words();
    for (int64_t c = 0; c < pairs_of_columns(item); ++c) {
      const uint32_t* g = p_.grad.at(item.draw, 2 * item.depth, 0);
      const uint32_t* x = p_.x.at(item.draw, item.block * (kGradient.cols / kTile) + 2 * c, 0);
      zero_sums(tiles_);
      for (int64_t t = 0; t < p_.x.down; ++t, g += kTileWords, x += kTileWords) {
        const TwoTiles a{g, 64, rows, low_of_grad}, b{x, 64, columns, low_of_x};
        add_products<kParts, false>(tiles_, a, b, [&] { spread.step(); });
      }
      constexpr int64_t row = kGradient.cols * 4;
      float* at = to + 2 * kTile * c;
      tiles_.store<0>(at, row);
      tiles_.store<1>(at + kTile, row);
      tiles_.store<2>(at + kTile * kGradient.cols, row);
      tiles_.store<3>(at + kTile * kGradient.cols + kTile, row);
    }
  }

  // The gradients of four rows of a block. Not inlined, so that the loop around the products keeps its registers.
  [[gnu::noinline]] void finish(const Item& item, int64_t quad, const float* block) {
    const Masked& m = p_.masked;
    const int64_t row = item.depth * kGradient.rows + quad * kUnitRows, first = item.block * kGradient.cols;
    const int64_t rows = smaller(kUnitRows, m.shape.rows - row);
    const Columns columns(m, p_.lead, first, kGradient.cols);
    if (rows <= 0 || columns.count() <= 0) return;
    const int64_t col = first + columns.begin - p_.lead;
    const ConstMatrix grad{block + quad * kUnitRows * kGradient.cols + columns.begin, kGradient.cols, DType::f32};
    if constexpr (kParts == 2)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < kDeep * pairs_of_columns(item); i += kLanes)
          finite_.see(load<f32v>(block + (quad * kUnitRows + r) * kGradient.cols + i));
    Bits kept = p_.kept;
    if (kept.data) kept.data += (item.draw * m.shape.rows + row) * kept.stride + (first + columns.begin) / kGroup;
    const Divergence kl = item.draw ? Divergence{} : Divergence{moved(p_.kl.prior, row, col), p_.kl.scale};
    const Gradients to{moved(p_.to.weight, row, col), moved(p_.to.logits, row, col), p_.to.add || item.draw > 0,
                       m.draws == 1 && is_large(m.shape)};
    kernels_.weight_grad(part_of(m, item.draw, row, col, {rows, columns.count()}), grad, kept, kl, to);
  }

 public:
  WeightGrad(const Kernels& kernels, const TileGrad& p, char* scratch) : kernels_(kernels), p_(p), scratch_(scratch) {}

  Found run(int64_t first, int64_t last) {
    constexpr int64_t quads = kGradient.rows / kUnitRows;
    const int64_t blocks = ceil_div(p_.masked.shape.cols + p_.lead, kGradient.cols);
    const Walk walk{p_.masked.draws, p_.panel, blocks, last - first};
    const auto shifted = [first](Item i) { return Item{i.panel, i.depth + first, i.block, i.draw}; };
    Item now{0, 0, 0, 0}, before{};
    int turn = 0;
    for (bool more = true, any = false; more; turn ^= 1, any = true) {
      const auto part = [&, from = block(turn ^ 1)](int64_t q) { finish(shifted(before), q, from); };
      Spread spread(any ? quads : 0, pairs_of_columns(now) * p_.x.down * products_of(kParts), part);
      multiply(shifted(now), block(turn), spread);
      before = now;
      more = walk.advance(now);
    }
    for (int64_t q = 0; q < quads; ++q) finish(shifted(before), q, block(turn ^ 1));
    stream_fence();
    return {false, finite_.failed()};
  }
};

Found tile_weight_grad(const Kernels& k, const TileGrad& p, int64_t first, int64_t last, char* scratch) {
  return p.x.parts == 1 ? WeightGrad<1>(k, p, scratch).run(first, last) : WeightGrad<2>(k, p, scratch).run(first, last);
}

constexpr TileKernels tile_kernels(const char* name) {
  return {name, pack, masked_product<false>, masked_product<true>, tile_weight_grad};
}

}  // namespace
}  // namespace stochprune
