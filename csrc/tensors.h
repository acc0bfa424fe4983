// Reads torch's tensors by their Python methods, so that no torch header is needed. Needs the GIL.
#pragma once
#include <pybind11/gil_safe_call_once.h>

#include <array>
#include <optional>
#include <vector>

#include "bindings.h"
#include "cpu/kernels.h"

namespace stochprune {

// Attribute names, interned once, and objects of torch.
struct Torch {
  py::str data_ptr, shape, stride, dtype, contiguous, seed, draw, stream, row, col, estimator, temperature, prior_logits, grad;
  py::str is_cpu, layout, is_neg, resolve_neg;
  py::object float32, bfloat16, int64, strided, tensor, parameter, is_autocast_enabled, interpreter_stack;
};
const Torch& torch();

inline py::object attribute(py::handle object, const py::str& name) {
  PyObject* found = PyObject_GetAttr(object.ptr(), name.ptr());
  if (!found) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(found);
}

inline py::object call(py::handle object, const py::str& method) {
  PyObject* result = PyObject_CallMethodNoArgs(object.ptr(), method.ptr());
  if (!result) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

// The address of the tensor's first element; null for None.
template <class T>
T* address(py::handle tensor) {
  return tensor.is_none() ? nullptr : reinterpret_cast<T*>(PyLong_AsSize_t(call(tensor, torch().data_ptr).ptr()));
}

DType dtype_of(py::handle tensor);  // throws TypeError if the CPU kernels do not support it
std::vector<int64_t> shape_of(py::handle tensor);
bool known_estimator(py::handle name);  // a str

// A tensor that is read as a matrix: its first dimension is the rows, the others together are the columns. If a row is not
// contiguous in memory, this object holds a copy.
struct Given {
  py::object tensor;
  Shape shape{};
  ConstMatrix matrix{};

  explicit Given(py::object given, bool integers = false);  // None: no data
  operator ConstMatrix() const { return matrix; }
};

// A tensor of any shape that is read as a contiguous matrix with `cols` columns. Holds a copy if necessary.
struct Dense {
  py::object tensor;
  ConstMatrix matrix{};

  Dense(py::object given, int64_t cols);
  operator ConstMatrix() const { return matrix; }
};

// A contiguous tensor that is written as a matrix with `cols` columns; None: no data.
Matrix result(py::handle tensor, int64_t cols);

// A stochprune.address.Mask and the weight that it masks. Holds the objects whose memory the addresses point to.
struct MaskedTensors {
  Masked masked{};
  std::vector<py::object> held;

  MaskedTensors(py::object mask, py::object weight, py::object logits, py::object threshold, py::object rows);
  MaskedTensors(py::object mask, Shape shape);
  // The number of 64-bit words of a row's hard mask; 0 if the estimator's mask is soft.
  int64_t groups() const;
};

}  // namespace stochprune
