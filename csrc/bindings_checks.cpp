// One test of a linear layer's arguments, in place of many calls of Python. It accepts what layers usually give. For all other
// arguments the checks in stochprune.functional decide, and write the error messages.
#include <cfloat>

#include "tensors.h"

namespace stochprune {
namespace {

bool is_dense(py::handle t) {
  const Torch& names = torch();
  const py::handle type(reinterpret_cast<PyObject*>(Py_TYPE(t.ptr())));
  return (type.is(names.tensor) || type.is(names.parameter)) && attribute(t, names.is_cpu).is(py::handle(Py_True)) &&
         attribute(t, names.layout).is(names.strided);
}

bool is_floating(py::handle t) {
  const py::object dtype = attribute(t, torch().dtype);
  return dtype.is(torch().float32) || dtype.is(torch().bfloat16);
}

// An int of Python itself, 0 .. most.
bool is_integer(py::handle number, long long most) {
  if (!PyLong_CheckExact(number.ptr())) return false;
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  return !overflow && 0 <= value && value <= most;
}

bool is_address(py::handle seed, py::handle draw) {
  for (const py::handle t : {seed, draw})
    if (!is_dense(t) || !attribute(t, torch().dtype).is(torch().int64) || shape_of(t) != std::vector<int64_t>{1}) return false;
  if (call(draw, torch().is_neg).is(py::handle(Py_True))) return false;
  const int64_t* value = address<int64_t>(draw);
  return value && 0 <= *value && *value <= UINT32_MAX;
}

bool is_estimator(py::handle name, py::handle temperature) {
  if (!PyUnicode_CheckExact(name.ptr()) || !PyFloat_CheckExact(temperature.ptr())) return false;
  const double t = PyFloat_AS_DOUBLE(temperature.ptr());
  return 0 < t && t <= DBL_MAX && known_estimator(name);
}

bool fits(py::handle x, py::handle weight, py::handle logits, py::handle bias) {
  for (const py::handle t : {x, weight, logits})
    if (!is_dense(t) || !is_floating(t)) return false;
  const std::vector<int64_t> from = shape_of(x), sizes = shape_of(weight);
  if (from.empty() || sizes.size() != 2 || from.back() != sizes[1] || shape_of(logits) != sizes) return false;
  if (sizes[0] > int64_t{1} << 32 || sizes[1] > int64_t{1} << 34) return false;  // the limits of an address
  if (bias.is_none()) return true;
  return is_dense(bias) && attribute(bias, torch().dtype).is(attribute(x, torch().dtype)) &&
         shape_of(bias) == std::vector<int64_t>{sizes[0]};
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
