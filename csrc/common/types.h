// What the CPU and the CUDA kernels call things. Matrices have unit column stride.
#pragma once
#include <cstdint>

namespace stochprune {

enum class DType : int { f32 = 0, bf16 = 1, f16 = 2 };  // float16 on CUDA alone
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
  void* data;  // null: not wanted
  int64_t stride;
  DType dtype;
};

struct Relaxation {
  Estimator estimator;
  float temperature;
};

}  // namespace stochprune
