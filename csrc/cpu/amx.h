// Masked products of bfloat16 on tiles, as Intel's AMX multiplies them: types, and the kernels of one tile unit.
//
// A tile is 16 rows of 16 words of 32 bits. As an operand, a word is a pair of bfloat16 that are neighbours in the dimension
// that is summed over; as a result, a word is a float. A masked weight is sampled into a block of tiles that stays in the
// first-level cache, and is multiplied there.
//
// A bfloat16 operand has one part. A float32 operand has two, both bfloat16: the high part is the rounded number, the low part
// the rounded rest. Of the four products of parts, the three with a high part are summed.
#pragma once
#include "kernels.h"

namespace stochprune {

constexpr int64_t kTile = 16;                  // rows of a tile, and its words in a row
constexpr int64_t kTileWords = kTile * kTile;  // 1 KB
constexpr int64_t kDeep = 2 * kTile;           // one product of tiles sums over so many

static inline constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static inline bool has_hard_mask(const Masked& m) {
  const Estimator e = m.relaxation.estimator;
  return e == Estimator::straight_through || e == Estimator::straight_through_concrete;
}

struct Tiles {  // activations [draws, examples, features] as tiles
  uint32_t* data;
  int64_t draws, across, down;  // tiles along the features and along the examples
  int64_t parts;                // of a number; the low parts of a column of tiles follow the high ones

  uint32_t* at(int64_t draw, int64_t column, int64_t row) const {
    return data + (draw * across + column) * column_words() + row * kTileWords;
  }
  int64_t part_words() const { return down * kTileWords; }  // from a tile to the next part of its numbers
  int64_t column_words() const { return parts * part_words(); }
  int64_t number_bytes() const { return 2 * parts; }
};

// How activations become tiles. Outside the matrix they are zero.
struct Packing {
  const void* from;  // [draws, examples, features], bfloat16 if the tiles have one part, float32 if they have two
  int64_t examples, features;
  int64_t lead;            // features that are missing before the first, so that tiles start at groups of the contract
  bool pairs_of_examples;  // a tile is 32 examples x 16 features; otherwise 16 examples x 32 features, in pairs of features
  bool transposed;         // a row of the tile is a feature, or a pair of features
  Tiles to;
};

// Blocks of the masked weight. Forward: 32 rows, summed over 256 columns. dx: 128 columns, summed over 128 rows. With two parts
// the sum over a block is half as long, so that the bytes are the same.
struct BlockOf {
  int64_t rows, cols;
};
constexpr BlockOf forward_block(int64_t parts) { return {32, 256 / parts}; }
constexpr BlockOf input_block(int64_t parts) { return {128 / parts, 128}; }
constexpr BlockOf kGradient = {32, 128};  // of the gradient of the masked weight

struct TileProduct {  // out [draws, examples, N] = x (z * weight)^T + bias, or out [draws, examples, K] = grad (z * weight)
  Masked masked;
  Bits kept;  // hard masks are written here; null: nowhere
  int64_t lead;  // columns that are missing before the weight's first in its first group of the contract
  Tiles activations;
  int64_t examples;
  ConstMatrix bias;  // one row, may be null
  void* out;  // of the dtype of the activations
  int64_t panel;  // how many blocks accumulate their results at a time
};

struct TileGrad {  // the gradients of weight and logits
  Masked masked;
  Bits kept;  // null: the masks are sampled again
  int64_t lead;
  Tiles grad, x;
  int64_t panel;  // how many blocks of columns are computed for all rows before the next ones
  Divergence kl;
  Gradients to;
};

// The bytes that one thread needs beside its accumulators: two blocks, and thresholds or the second block of a gradient.
constexpr int64_t kBlockBytes = 128 * 128 * 2;
constexpr int64_t kThreadBytes = 3 * kBlockBytes;

// The bytes of a block's accumulators for one draw: floats, the block's outputs x examples.
static inline constexpr int64_t accumulator_bytes(int64_t outputs, int64_t examples) {
  return outputs * ceil_div(examples, kDeep) * kDeep * 4;
}

struct Found {
  bool nan_logit = false;
  bool not_finite = false;  // a product with two parts is infinite or NaN

  Found& operator|=(Found other) {
    nan_logit |= other.nan_logit;
    not_finite |= other.not_finite;
    return *this;
  }
};

struct TileKernels {
  const char* name;
  // Packs the tile columns first .. last, counted over all draws.
  void (*pack)(const Packing&, int64_t first, int64_t last);
  // The blocks first .. last of the outputs, in one thread's scratch memory.
  Found (*forward)(const Kernels&, const TileProduct&, int64_t first, int64_t last, char* scratch);
  Found (*input_grad)(const Kernels&, const TileProduct&, int64_t first, int64_t last, char* scratch);
  // The blocks first .. last of the weight's rows.
  Found (*weight_grad)(const Kernels&, const TileGrad&, int64_t first, int64_t last, char* scratch);
};

// The kernels compiled into this binary; null if the compiler or the target lacks the instructions.
const TileKernels* amx_tiles();
const TileKernels* emulated_tiles_avx512();  // portable tiles, masks sampled by AVX-512
const TileKernels* emulated_tiles();

// True if the processor has AMX for bfloat16 and the operating system lets this process use its registers.
bool amx_permitted();

}  // namespace stochprune
