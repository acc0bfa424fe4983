// How Python's numbers and tuples reach the kernels.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "common/types.h"

namespace py = pybind11;

namespace stochprune {

using Key = std::tuple<uint64_t, uint32_t, uint32_t, uint64_t, uint64_t>;  // seed, draw, stream, first row, first column
using Array = std::tuple<uintptr_t, int64_t, int>;                         // address or 0, row stride, dtype
using Size = std::tuple<int64_t, int64_t>;                                 // rows, columns

inline Shape shape(const Size& s) { return {std::get<0>(s), std::get<1>(s)}; }

// A code that no kernel knows would be read as another one's numbers. The last one is `last`: the CPU has no float16.
inline DType dtype(const Array& a, DType last) {
  const int code = std::get<2>(a);
  if (std::get<0>(a) && (code < 0 || code > int(last))) throw std::invalid_argument("no kernel for dtype " + std::to_string(code));
  return DType(code);
}

inline ConstMatrix input(const Array& a, DType last = DType::bf16) {
  return {reinterpret_cast<const void*>(std::get<0>(a)), std::get<1>(a), dtype(a, last)};
}

inline Matrix output(const Array& a, DType last = DType::bf16) {
  return {reinterpret_cast<void*>(std::get<0>(a)), std::get<1>(a), dtype(a, last)};
}

void bind_cuda(py::module_& m);

}  // namespace stochprune
