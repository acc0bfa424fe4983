// Matrices in blocks of 64 columns: the uniforms of a block, reads and writes; part of kernels_impl.h.
//
// A block is one group of the contract: 64 columns of one row that share eight Philox calls. A matrix whose first
// column is not a multiple of 64, or whose last block is short, uses lanes [begin, begin + count) of a block. The other
// lanes hold zeros; they are computed and discarded, so that no loop over a block needs a tail.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace stochprune {
namespace {

template <class T>
struct alignas(64) Buffer {
  T v[kGroup];
};

struct Block {
  int64_t row, col;  // the position of its first weight in the matrix
  int begin, count;
  uint64_t group;

  bool whole() const { return count == kGroup; }
};

// Runs body(block) for each block of a matrix whose first column is the contract's column `first`.
template <class F>
inline void for_each_block(uint64_t first, Shape shape, F&& body) {
  for (int64_t row = 0; row < shape.rows; ++row) {
    for (int64_t col = 0; col < shape.cols;) {
      const int begin = int((first + col) % kGroup);
      const int64_t left = shape.cols - col;
      const int count = int(left < kGroup - begin ? left : kGroup - begin);
      body(Block{row, col, begin, count, (first + col) / kGroup});
      col += count;
    }
  }
}

// The block of the weight and its logits for a block of the result; they differ if rows are gathered.
inline Block source(const Masked& m, Block b) {
  if (m.rows) b.row = m.rows[b.row];
  return b;
}

// The uniforms of a matrix's blocks under its first draw.
class BlockUniforms {
  const Uniforms uniforms_;
  const uint64_t row_;
  const int64_t* const rows_;

 public:
  explicit BlockUniforms(const Masked& m, uint32_t stream_bits = 0)
      : uniforms_(uint64_t(*m.seed), uint32_t(*m.draw), m.stream | stream_bits), row_(m.row), rows_(m.rows) {}

  STOCHPRUNE_INLINE void operator()(const Block& b, uint16_t* u) const {
    uniforms_(uint32_t(row_ + uint64_t(rows_ ? rows_[b.row] : b.row)), b.group, u);
  }
};

// The block's 64 values as floats: a pointer into the matrix if it holds them like that, else to a copy in `buffer`.
STOCHPRUNE_INLINE const float* read(ConstMatrix m, const Block& b, Buffer<float>& buffer) {
  const int64_t at = b.row * m.stride + b.col;
  if (m.dtype == DType::f32) {
    const float* p = static_cast<const float*>(m.data) + at;
    if (b.whole()) return p;
    std::memset(buffer.v, 0, sizeof buffer.v);
    std::memcpy(buffer.v + b.begin, p, b.count * sizeof(float));
    return buffer.v;
  }
  const uint16_t* p = static_cast<const uint16_t*>(m.data) + at;
  Buffer<uint16_t> copy;
  if (!b.whole()) {
    std::memset(copy.v, 0, sizeof copy.v);
    std::memcpy(copy.v + b.begin, p, b.count * sizeof(uint16_t));
    p = copy.v;
  }
  for (int i = 0; i < kGroup; i += kLanes) store(buffer.v + i, bf16_to_float(load<u16v>(p + i)));
  return buffer.v;
}

// A block's first value in a matrix of bfloat16.
inline const uint16_t* half_words(ConstMatrix m, const Block& b) {
  return static_cast<const uint16_t*>(m.data) + b.row * m.stride + b.col;
}

inline uint16_t* half_words(Matrix m, const Block& b) { return static_cast<uint16_t*>(m.data) + b.row * m.stride + b.col; }

// The memory in which a block's 64 results are computed: the matrix itself if possible, else `buffer`; `write` copies.
inline float* target(Matrix m, const Block& b, Buffer<float>& buffer) {
  return m.dtype == DType::f32 && b.whole() ? static_cast<float*>(m.data) + b.row * m.stride + b.col : buffer.v;
}

STOCHPRUNE_INLINE void write(Matrix m, const Block& b, const float* values) {
  const int64_t at = b.row * m.stride + b.col;
  if (m.dtype == DType::f32) {
    float* p = static_cast<float*>(m.data) + at;
    if (p == values) return;
    if (!b.whole()) {
      std::memcpy(p, values + b.begin, b.count * sizeof(float));
    } else {
      for (int i = 0; i < kGroup; i += kLanes) store(p + i, load<f32v>(values + i));
    }
    return;
  }
  uint16_t* p = static_cast<uint16_t*>(m.data) + at;
  if (b.whole()) {
    for (int i = 0; i < kGroup; i += kLanes) store(p + i, float_to_bf16(load<f32v>(values + i)));
    return;
  }
  Buffer<uint16_t> half;
  for (int i = 0; i < kGroup; i += kLanes) store(half.v + i, float_to_bf16(load<f32v>(values + i)));
  std::memcpy(p, half.v + b.begin, b.count * sizeof(uint16_t));
}

STOCHPRUNE_INLINE const uint16_t* read(Thresholds t, const Block& b, Buffer<uint16_t>& buffer) {
  const uint16_t* p = t.data + b.row * t.stride + b.col;
  if (b.whole()) return p;
  std::memset(buffer.v, 0, sizeof buffer.v);
  std::memcpy(buffer.v + b.begin, p, b.count * sizeof(uint16_t));
  return buffer.v;
}

// Records whether a NaN was seen: as integers, the bits of a NaN's magnitude are above those of infinity.
struct NanWatch {
  i32v largest = {};

  void see(f32v x) {
    const i32v magnitude = as_int(x) & 0x7FFFFFFF;
    largest = magnitude > largest ? magnitude : largest;
  }
  bool found() const { return lane_bits(largest > 0x7F800000) != 0; }
};

// True if results are larger than the caches; they are then stored past the caches.
inline bool is_large(Shape shape) { return shape.rows * shape.cols > 1 << 18; }

// Adds to the old values or overwrites them. `fresh`: the memory is not read soon, so values are stored past the caches.
STOCHPRUNE_INLINE void write_sum(Matrix m, const Block& b, Buffer<float>& values, bool accumulate, bool fresh) {
  if (fresh && m.dtype == DType::f32 && b.whole()) {
    float* p = static_cast<float*>(m.data) + b.row * m.stride + b.col;
    for (int i = 0; i < kGroup; i += kLanes) stream(p + i, load<f32v>(values.v + i));
    return;
  }
  if (accumulate) {
    Buffer<float> copy;
    const float* old = read(ConstMatrix{m.data, m.stride, m.dtype}, b, copy);
    for (int i = 0; i < kGroup; i += kLanes) store(values.v + i, load<f32v>(values.v + i) + load<f32v>(old + i));
  }
  write(m, b, values.v);
}

}  // namespace
}  // namespace stochprune
