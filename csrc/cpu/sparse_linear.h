// y = x W^T + bias of up to 16 examples and a matrix of which only the kept weights are stored, row by row.
//
// The examples lie side by side: x is [columns, lanes], so that a kept weight meets all of them in one vector product.
// Rows are read once, their values and columns in order. Four sums for each output hide the latency of the products;
// weight i of a row goes to sum i % 4, whatever the batch is, so that an output depends on its own example alone.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace stochprune {
namespace {

constexpr int kSums = 4;

// `V` vectors hold the examples of one column.
template <class Vec, int V>
void sparse_rows(const SparseRows& w, int64_t begin, int64_t end, const float* x, const float* bias, Matrix y, int batch) {
  constexpr int kWidth = sizeof(Vec) / sizeof(float), kBatch = V * kWidth, kRows = 16;
  float block[kRows][kBatch];  // some rows of y^T
  for (int64_t r = begin; r < end; r += kRows) {
    const int rows = int(end - r < kRows ? end - r : kRows);
    for (int j = 0; j < rows; ++j) {
      Vec sums[kSums][V] = {};
      const auto add = [&](int64_t i, int s) {
        const float* at = x + int64_t(w.columns[i]) * kBatch;
        for (int v = 0; v < V; ++v) sums[s][v] = load<Vec>(at + v * kWidth) * w.values[i] + sums[s][v];
      };
      int64_t i = w.first[r + j];
      const int64_t last = w.first[r + j + 1];
      for (; i + kSums <= last; i += kSums)
        for (int s = 0; s < kSums; ++s) add(i + s, s);
      for (int s = 0; i < last; ++i, ++s) add(i, s);
      const float b = bias ? bias[r + j] : 0.0f;
      for (int v = 0; v < V; ++v)
        store(&block[j][v * kWidth], ((sums[0][v] + sums[1][v]) + (sums[2][v] + sums[3][v])) + b);
    }
    for (int m = 0; m < batch; ++m)
      for (int j = 0; j < rows; ++j) static_cast<float*>(y.data)[m * y.stride + r + j] = block[j][m];
  }
}

// One example: x is a vector.
void sparse_rows_of_one(const SparseRows& w, int64_t begin, int64_t end, const float* x, const float* bias, float* y) {
  for (int64_t r = begin; r < end; ++r) {
    float sums[kSums] = {};
    const auto add = [&](int64_t i, int s) { sums[s] = x[w.columns[i]] * w.values[i] + sums[s]; };
    int64_t i = w.first[r];
    const int64_t last = w.first[r + 1];
    for (; i + kSums <= last; i += kSums)
      for (int s = 0; s < kSums; ++s) add(i + s, s);
    for (int s = 0; i < last; ++i, ++s) add(i, s);
    y[r] = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + (bias ? bias[r] : 0.0f);
  }
}

void sparse_linear(const SparseRows& w, int64_t begin, int64_t end, const float* x, const float* bias, Matrix y, int batch) {
  constexpr int kHalf = kLanes < 8 ? kLanes : 8;
  const int lanes = sparse_lanes(batch);
  if (lanes == 1) return sparse_rows_of_one(w, begin, end, x, bias, static_cast<float*>(y.data));
  if (lanes == 4) return sparse_rows<vector_of<float, 4>::type, 1>(w, begin, end, x, bias, y, batch);
  if (lanes == 8) return sparse_rows<vector_of<float, kHalf>::type, 8 / kHalf>(w, begin, end, x, bias, y, batch);
  sparse_rows<f32v, 16 / kLanes>(w, begin, end, x, bias, y, batch);
}

}  // namespace
}  // namespace stochprune
