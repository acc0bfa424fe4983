// Conversions that the bindings share.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>

#include "common/types.h"

namespace py = pybind11;

namespace stochprune {

using Size = std::tuple<int64_t, int64_t>;  // rows, columns

inline Shape shape(const Size& s) { return {std::get<0>(s), std::get<1>(s)}; }

void bind_checks(py::module_& m);
void bind_cuda(py::module_& m);

}  // namespace stochprune
