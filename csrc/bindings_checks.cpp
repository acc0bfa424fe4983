// One test of a linear layer's arguments, in place of many calls of Python. It accepts what layers usually give. For all other
// arguments the checks in stochprune.functional decide, and write the error messages.
#include <algorithm>
#include <cfloat>

#include "tensors.h"

namespace stochprune {
namespace {

// The memory of a plain tensor on the CPU; none of any other tensor.
std::optional<dlpack::Tensor> plain(py::handle t) {
  const py::handle type(reinterpret_cast<PyObject*>(Py_TYPE(t.ptr())));
  if (!type.is(torch().tensor) && !type.is(torch().parameter)) return {};
  const auto memory = find_memory(t);
  return memory && memory->device == dlpack::kCpu ? memory : std::nullopt;
}

bool is_floating(const dlpack::Tensor& t) { return t.dtype == dlpack::kFloat32 || t.dtype == dlpack::kBfloat16; }

bool has_shape(const dlpack::Tensor& t, std::initializer_list<int64_t> sizes) { return std::ranges::equal(shape_of(t), sizes); }

// An int of Python itself, 0 .. most.
bool is_integer(py::handle number, long long most) {
  if (!PyLong_CheckExact(number.ptr())) return false;
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  return !overflow && 0 <= value && value <= most;
}

bool is_address(py::handle seed, py::handle draw) {
  const auto bits = plain(seed), count = plain(draw);
  for (const auto& t : {bits, count})
    if (!t || t->dtype != dlpack::kInt64 || !has_shape(*t, {1})) return false;
  if (call(draw, torch().is_neg).is(py::handle(Py_True))) return false;
  const int64_t* value = address<int64_t>(*count);
  return value && 0 <= *value && *value <= UINT32_MAX;
}

bool is_estimator(py::handle name, py::handle temperature) {
  if (!PyUnicode_CheckExact(name.ptr()) || !PyFloat_CheckExact(temperature.ptr())) return false;
  const double t = PyFloat_AS_DOUBLE(temperature.ptr());
  return 0 < t && t <= DBL_MAX && known_estimator(name);
}

bool fits(py::handle x, py::handle weight, py::handle logits, py::handle bias) {
  const auto from = plain(x), w = plain(weight), l = plain(logits);
  for (const auto& t : {from, w, l})
    if (!t || !is_floating(*t)) return false;
  if (from->dimensions < 1 || w->dimensions != 2 || !std::ranges::equal(shape_of(*l), shape_of(*w))) return false;
  const int64_t rows = w->shape[0], cols = w->shape[1];
  if (shape_of(*from).back() != cols || rows > int64_t{1} << 32 || cols > int64_t{1} << 34) return false;  // limits of an address
  if (bias.is_none()) return true;
  const auto b = plain(bias);
  return b && b->dtype == from->dtype && has_shape(*b, {rows});
}

}  // namespace

void bind_checks(py::module_& m) {
  m.def("usual_linear", [](py::handle x, py::handle weight, py::handle logits, py::handle bias, py::handle seed, py::handle draw,
                           py::handle stream, py::handle estimator, py::handle temperature, py::handle samples, py::handle row,
                           py::handle col) {
    return samples.is_none() && is_integer(row, 0) && is_integer(col, 0) && is_integer(stream, INT32_MAX) &&
           torch().interpreter_stack().is_none() && fits(x, weight, logits, bias) && is_address(seed, draw) &&
           is_estimator(estimator, temperature) && !torch().is_autocast_enabled("cpu").cast<bool>();
  });
}

}  // namespace stochprune
