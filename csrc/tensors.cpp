#include "tensors.h"

namespace stochprune {
namespace {

constexpr std::array<const char*, 5> kEstimators = {"straight_through", "concrete", "straight_through_concrete", "expected",
                                                    "hard_concrete"};  // in the order of Estimator

std::optional<Estimator> find_estimator(py::handle name) {
  for (size_t i = 0; i < kEstimators.size(); ++i)
    if (PyUnicode_CompareWithASCIIString(name.ptr(), kEstimators[i]) == 0) return Estimator(i);
  return {};
}

Estimator estimator_of(py::handle name) {
  if (const auto found = find_estimator(name)) return *found;
  throw py::value_error("unknown estimator " + py::cast<std::string>(py::repr(name)));
}

template <class T>
T integer(py::handle number) {
  return py::cast<T>(number);
}

}  // namespace

const Torch& torch() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<Torch> names;
  return names
      .call_once_and_store_result([] {
        const auto name = [](const char* text) { return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(text)); };
        const py::module_ torch = py::module_::import("torch");
        return Torch{name("data_ptr"), name("shape"),     name("stride"),      name("dtype"),          name("contiguous"),
                     name("seed"),     name("draw"),      name("stream"),      name("row"),            name("col"),
                     name("estimator"), name("temperature"), name("prior_logits"), name("grad"),
                     name("is_cpu"),   name("layout"),    name("is_neg"),      name("resolve_neg"),
                     torch.attr("float32"), torch.attr("bfloat16"), torch.attr("int64"), torch.attr("strided"), torch.attr("Tensor"), torch.attr("nn").attr("Parameter"),
                     torch.attr("is_autocast_enabled"), torch.attr("_C").attr("_functorch").attr("peek_interpreter_stack")};
      })
      .get_stored();
}

bool known_estimator(py::handle name) { return find_estimator(name).has_value(); }

DType dtype_of(py::handle tensor) {
  const py::object dtype = attribute(tensor, torch().dtype);
  if (dtype.is(torch().float32)) return DType::f32;
  if (dtype.is(torch().bfloat16)) return DType::bf16;
  throw py::type_error("the compiled kernels take float32 and bfloat16, got " + py::cast<std::string>(py::str(dtype)));
}

std::vector<int64_t> shape_of(py::handle tensor) {
  const py::object sizes = attribute(tensor, torch().shape);
  if (!PyTuple_Check(sizes.ptr())) throw py::type_error("a tensor's shape must be a tuple");
  std::vector<int64_t> shape(size_t(PyTuple_GET_SIZE(sizes.ptr())));
  for (size_t i = 0; i < shape.size(); ++i) shape[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(sizes.ptr(), Py_ssize_t(i)));
  return shape;
}

Given::Given(py::object given, bool integers) : tensor(std::move(given)) {
  if (tensor.is_none()) return;
  tensor = call(tensor, torch().resolve_neg);  // the memory of a negated view has the other sign
  const std::vector<int64_t> sizes = shape_of(tensor);
  shape = {sizes[0], 1};
  for (size_t i = 1; i < sizes.size(); ++i) shape.cols *= sizes[i];
  matrix.stride = shape.cols;
  const py::object strides = call(tensor, torch().stride);
  const auto stride = [&](int i) { return PyLong_AsLongLong(PyTuple_GET_ITEM(strides.ptr(), i)); };
  if (sizes.size() == 2 && (stride(1) == 1 || shape.cols <= 1)) {
    matrix.stride = stride(0);
  } else {
    tensor = call(tensor, torch().contiguous);
  }
  matrix.data = address<void>(tensor);
  if (!integers) matrix.dtype = dtype_of(tensor);
}

Dense::Dense(py::object given, int64_t cols) : tensor(std::move(given)) {
  if (tensor.is_none()) return;
  tensor = call(call(tensor, torch().resolve_neg), torch().contiguous);
  matrix = {address<void>(tensor), cols, dtype_of(tensor)};
}

Matrix result(py::handle tensor, int64_t cols) {
  return tensor.is_none() ? Matrix{} : Matrix{address<void>(tensor), cols, dtype_of(tensor)};
}

MaskedTensors::MaskedTensors(py::object mask, Shape shape) {
  const Torch& names = torch();
  const py::object seed = call(attribute(mask, names.seed), names.resolve_neg);
  const py::object draw = call(call(attribute(mask, names.draw), names.resolve_neg), names.contiguous);
  held = {seed, draw};
  masked.shape = shape;
  masked.seed = address<int64_t>(seed);
  masked.draw = address<int64_t>(draw);
  masked.draws = shape_of(draw)[0];
  masked.stream = integer<uint32_t>(attribute(mask, names.stream));
  masked.row = integer<uint64_t>(attribute(mask, names.row));
  masked.col = integer<uint64_t>(attribute(mask, names.col));
  masked.relaxation = {estimator_of(attribute(mask, names.estimator)), py::cast<float>(attribute(mask, names.temperature))};
}

MaskedTensors::MaskedTensors(py::object mask, py::object weight, py::object logits, py::object threshold, py::object rows)
    : MaskedTensors(std::move(mask), Shape{}) {
  const Given w(std::move(weight)), l(std::move(logits)), t(std::move(threshold), true);
  masked.shape = w.tensor.is_none() ? t.shape : w.shape;
  masked.weight = w;
  masked.logits = l;
  masked.thresholds = {static_cast<const uint16_t*>(t.matrix.data), t.matrix.stride};
  held.insert(held.end(), {w.tensor, l.tensor, t.tensor});
  if (!rows.is_none()) {
    held.push_back(call(rows, torch().contiguous));
    masked.rows = address<int64_t>(held.back());
    masked.shape.rows = shape_of(held.back())[0];
  }
}

int64_t MaskedTensors::groups() const {
  const Estimator e = masked.relaxation.estimator;
  const bool hard = e == Estimator::straight_through || e == Estimator::straight_through_concrete;
  return hard ? (int64_t(masked.col % 64) + masked.shape.cols + 63) / 64 : 0;
}

}  // namespace stochprune
