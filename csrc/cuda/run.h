// Runs an op on every weight of a matrix. Eight threads work on a group of 64 columns. Thread j computes Philox call j
// of the group and writes its four words between those of the other threads, so that the uniforms are in column order.
// Then it works on columns 8 j .. 8 j + 7. A host compiler runs the same steps one after the other, for tests without a
// GPU.
#pragma once
#include <stdexcept>

#include "../common/philox.h"
#ifdef __CUDACC__
#include "current_device.h"
#endif
#include "memory.h"

namespace stochprune::cuda {

constexpr int kThreads = 256;
constexpr int kLanes = 8;
constexpr int kOctets = kThreads / kLanes;
constexpr int kPitch = 40;  // words from one group to the next: so the four groups of a warp are in different banks

struct Key {  // seed and draws are pointers, so that a captured graph samples fresh masks
  const int64_t* seed;
  const int64_t* draws;
  uint32_t stream;
  uint64_t row, group;  // position of the matrix's first row and group in the contract's matrix
  const int64_t* rows;  // the row of the weight for each row of the grid; null: all rows in order
  STOCHPRUNE_DEVICE int64_t source(int64_t row) const { return rows ? rows[row] : row; }
};

struct Grid {
  int64_t rows, cols;
  int shift;        // number of columns of the first group before the matrix
  uint32_t across;  // groups in a row
  uint32_t groups;
};

STOCHPRUNE_DEVICE void draw_words(const Key& key, const Grid& grid, uint32_t q, uint32_t d, int lane, uint32_t* words) {
  const uint64_t seed = uint64_t(*key.seed);
  const Words call = group_call(seed, uint32_t(key.draws[d]), key.stream, uint32_t(key.row + key.source(q / grid.across)),
                                key.group + q % grid.across, uint32_t(lane));
  for (int s = 0; s < 4; ++s) words[kLanes * s + lane] = call.w[s];
}

template <class Op>
STOCHPRUNE_DEVICE void visit(const Op& op, const Key& key, const Grid& grid, uint32_t q, uint32_t d, int lane,
                             const uint32_t* words) {
  const int64_t row = q / grid.across, col = int64_t(q % grid.across) * kGroup + lane * kColumns - grid.shift;
  const Span span = {col < 0 ? int(-col < kColumns ? -col : kColumns) : 0,
                     grid.cols - col < kColumns ? int(grid.cols - col) : kColumns};
  if (span.first >= span.last) return;
  uint32_t u[kColumns] = {};
  if (op.draws()) {
    const Eight<uint16_t> drawn = read(reinterpret_cast<const uint16_t*>(words) + lane * kColumns, {0, kColumns}, true);
    for (int i = 0; i < kColumns; ++i) u[i] = drawn.at[i];
  }
  op({row, key.source(row), col, span}, u, d);
}

inline Grid make_grid(Shape shape, int shift = 0) {
  const uint64_t across = (uint64_t(shape.cols) + shift + kGroup - 1) / kGroup, groups = across * uint64_t(shape.rows);
  if (groups >= (uint64_t(1) << 32)) throw std::invalid_argument("a weight of 2^38 elements or more");
  return {shape.rows, shape.cols, shift, uint32_t(across), uint32_t(groups)};
}

// Blocks are counted along x only, since y allows 65,535. Neighbouring blocks work on the draws of the same groups.
inline uint32_t count_blocks(const Grid& grid, int64_t draws) {
  const uint64_t blocks = (uint64_t(grid.groups) + kOctets - 1) / kOctets * uint64_t(draws);
  if (blocks >= (uint64_t(1) << 31)) throw std::invalid_argument("2^31 blocks or more: pass fewer draws at a time");
  return uint32_t(blocks);
}
STOCHPRUNE_DEVICE uint64_t group_of(uint32_t block, uint32_t draws, int octet) {
  return uint64_t(block / draws) * kOctets + octet;
}
STOCHPRUNE_DEVICE uint32_t draw_of(uint32_t block, uint32_t draws) { return block % draws; }

#ifdef __CUDACC__

template <class Op>
__global__ void __launch_bounds__(kThreads) each_weight(Op op, Grid grid, Key key, uint32_t draws) {
  __shared__ __align__(16) uint32_t words[kOctets][kPitch];
  const int octet = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const uint64_t q = group_of(blockIdx.x, draws, octet);
  const uint32_t d = draw_of(blockIdx.x, draws);
  if (op.draws()) {  // the same for all threads
    if (q < grid.groups) draw_words(key, grid, uint32_t(q), d, lane, words[octet]);
    __syncwarp();
  }
  if (q < grid.groups) visit(op, key, grid, uint32_t(q), d, lane, words[octet]);
}

template <class Op>
void run(const Op& op, const Grid& grid, const Key& key, int64_t draws, int device, uintptr_t stream) {
  const uint32_t blocks = count_blocks(grid, draws);
  if (!blocks) return;
  const CurrentDevice current(device);
  each_weight<<<blocks, kThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(op, grid, key, uint32_t(draws));
  check(cudaGetLastError());
}

#else

template <class Op>
void run(const Op& op, const Grid& grid, const Key& key, int64_t draws, int, uintptr_t) {
  alignas(16) uint32_t words[kPitch];
  const uint32_t blocks = count_blocks(grid, draws);
  for (uint32_t block = 0; block < blocks; ++block)
    for (int octet = 0; octet < kOctets; ++octet) {
      const uint64_t q = group_of(block, uint32_t(draws), octet);
      const uint32_t d = draw_of(block, uint32_t(draws));
      if (q >= grid.groups) break;
      if (op.draws())
        for (int lane = 0; lane < kLanes; ++lane) draw_words(key, grid, uint32_t(q), d, lane, words);
      for (int lane = 0; lane < kLanes; ++lane) visit(op, key, grid, uint32_t(q), d, lane, words);
    }
}

#endif

}  // namespace stochprune::cuda
