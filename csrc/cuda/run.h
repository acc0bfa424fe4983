// Runs an op over every weight of a matrix. Eight threads serve a group of 64 columns: thread j runs Philox call j of the
// group and lays its four words beside those of the others, which gives the uniforms in column order, and then owns columns
// 8 j .. 8 j + 7. A host compiler runs the same steps one after another, for tests without a GPU.
#pragma once
#include <stdexcept>
#include <string>

#include "../common/philox.h"
#include "memory.h"

namespace stochprune::cuda {

constexpr int kThreads = 256;
constexpr int kLanes = 8;
constexpr int kOctets = kThreads / kLanes;
constexpr int kPitch = 40;  // words from one group's 32 to the next: the four groups of a warp then lie in different banks

struct Key {  // where a launch's numbers are read from, so that a captured graph draws fresh masks
  const int64_t* seed;
  const int64_t* draws;  // one for each of blockIdx.y
  uint32_t stream;
  uint64_t row, group;  // global position of the matrix's first row and group
  const int64_t* rows;  // the rows to look at, one for each row of the grid; null: all
  STOCHPRUNE_DEVICE int64_t source(int64_t row) const { return rows ? rows[row] : row; }
};

struct Grid {
  int64_t rows, cols;
  int shift;        // columns of the first group that lie before the matrix
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

#ifdef __CUDACC__

inline void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

template <class Op>
__global__ void __launch_bounds__(kThreads) each_weight(Op op, Grid grid, Key key) {
  __shared__ __align__(16) uint32_t words[kOctets][kPitch];
  const int octet = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const uint64_t q = uint64_t(blockIdx.x) * kOctets + octet;
  if (op.draws()) {  // the same for all threads
    if (q < grid.groups) draw_words(key, grid, uint32_t(q), blockIdx.y, lane, words[octet]);
    __syncwarp();
  }
  if (q < grid.groups) visit(op, key, grid, uint32_t(q), blockIdx.y, lane, words[octet]);
}

template <class Op>
void run(const Op& op, const Grid& grid, const Key& key, int draws, int device, uintptr_t stream) {
  if (!grid.groups) return;
  check(cudaSetDevice(device));
  const dim3 blocks((grid.groups + kOctets - 1) / kOctets, draws);
  each_weight<<<blocks, kThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(op, grid, key);
  check(cudaGetLastError());
}

#else

template <class Op>
void run(const Op& op, const Grid& grid, const Key& key, int draws, int, uintptr_t) {
  alignas(16) uint32_t words[kPitch];
  for (int d = 0; d < draws; ++d)
    for (uint32_t q = 0; q < grid.groups; ++q) {
      if (op.draws())
        for (int lane = 0; lane < kLanes; ++lane) draw_words(key, grid, q, d, lane, words);
      for (int lane = 0; lane < kLanes; ++lane) visit(op, key, grid, q, d, lane, words);
    }
}

#endif

}  // namespace stochprune::cuda
