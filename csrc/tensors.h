// Reads torch's tensors by DLPack's C functions and by Python methods, so that no torch header is needed. Needs the GIL.
#pragma once
#include <pybind11/gil_safe_call_once.h>

#include <array>
#include <optional>
#include <span>
#include <vector>

#include "bindings.h"
#include "cpu/kernels.h"
#include "dlpack.h"

namespace stochprune {

// Attribute names, interned once, and objects of torch.
struct Torch {
  py::str dtype, contiguous, is_neg, resolve_neg;
  py::str seed, draw, stream, row, col, estimator, temperature, prior_logits, grad;
  py::object tensor, parameter, is_autocast_enabled, interpreter_stack;
  const dlpack::Exchange* exchange;
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

// The memory of a tensor as DLPack describes it; none where it cannot, as of a sparse or a meta tensor.
std::optional<dlpack::Tensor> find_memory(py::handle tensor);
dlpack::Tensor memory_of(py::handle tensor);  // throws torch's error where it cannot

inline std::span<const int64_t> shape_of(const dlpack::Tensor& t) { return {t.shape, size_t(t.dimensions)}; }
inline std::span<const int64_t> shape_of(py::handle tensor) { return shape_of(memory_of(tensor)); }

// The address of the tensor's first element; null for None.
template <class T>
T* address(const dlpack::Tensor& t) {
  return reinterpret_cast<T*>(static_cast<char*>(t.data) + t.byte_offset);
}
template <class T>
T* address(py::handle tensor) {
  return tensor.is_none() ? nullptr : address<T>(memory_of(tensor));
}

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
