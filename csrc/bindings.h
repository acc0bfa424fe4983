// How Python's numbers and tuples reach the kernels.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>

#include "common/types.h"

namespace py = pybind11;

namespace stochprune {

using Key = std::tuple<uint64_t, uint32_t, uint32_t, uint64_t, uint64_t>;  // seed, draw, stream, first row, first column
using Array = std::tuple<uintptr_t, int64_t, int>;                         // address or 0, row stride, dtype
using Size = std::tuple<int64_t, int64_t>;                                 // rows, columns

inline Shape shape(const Size& s) { return {std::get<0>(s), std::get<1>(s)}; }

inline ConstMatrix input(const Array& a) {
  return {reinterpret_cast<const void*>(std::get<0>(a)), std::get<1>(a), DType(std::get<2>(a))};
}

inline Matrix output(const Array& a) {
  return {reinterpret_cast<void*>(std::get<0>(a)), std::get<1>(a), DType(std::get<2>(a))};
}

void bind_cuda(py::module_& m);

}  // namespace stochprune
