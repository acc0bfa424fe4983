// Types of the CPU and the CUDA kernels. Matrices have unit column stride.
#pragma once
#include <cstdint>

namespace stochprune {

enum class DType : int { f32 = 0, bf16 = 1, f16 = 2 };  // float16 on CUDA only
enum class Estimator : int { straight_through = 0, concrete = 1, straight_through_concrete = 2, expected = 3, hard_concrete = 4 };

struct Shape {
  int64_t rows, cols;
};

struct ConstMatrix {
  const void* data;
  int64_t stride;  // elements from one row to the next
  DType dtype;
};

struct Matrix {
  void* data;  // null: not needed
  int64_t stride;
  DType dtype;
};

struct Thresholds {
  const uint16_t* data;  // null: computed from the logits
  int64_t stride;
};

struct Relaxation {
  Estimator estimator;
  float temperature;
};

struct Masked {  // a weight matrix under the masks of one or more draws
  Shape shape;   // of the whole weight, or of the rows that are gathered
  const int64_t *seed, *draw;  // in the memory of the device
  int64_t draws;
  uint32_t stream;
  uint64_t row, col;    // the contract's row and column of the matrix's first weight
  const int64_t* rows;  // the rows that are gathered; null: all of them
  Relaxation relaxation;
  ConstMatrix weight, logits;
  Thresholds thresholds;
};

}  // namespace stochprune
