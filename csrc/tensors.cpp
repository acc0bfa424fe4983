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

const dlpack::Exchange* exchange_of(py::handle type) {
  const py::object capsule = type.attr("__dlpack_c_exchange_api__");
  const void* found = PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api");
  if (!found) throw py::error_already_set();
  auto exchange = static_cast<const dlpack::Exchange*>(found);
  while (exchange && exchange->major != 1) exchange = exchange->older;
  if (!exchange || !exchange->describe) throw py::import_error("this torch lacks DLPack's version 1: install torch 2.11 or later");
  return exchange;
}

// The tensor, or a copy if it is a negated view: its memory has the other sign.
py::object positive(py::object tensor) {
  return call(tensor, torch().is_neg).is(py::handle(Py_True)) ? call(tensor, torch().resolve_neg) : std::move(tensor);
}

bool is_contiguous(const dlpack::Tensor& t) {
  int64_t stride = 1;
  for (int i = t.dimensions - 1; i >= 0; --i) {
    if (t.shape[i] != 1 && t.strides[i] != stride) return false;
    stride *= t.shape[i];
  }
  return true;
}

// A tensor whose numbers lie in order in memory: this one, or a copy.
py::object dense(py::object tensor) {
  tensor = positive(std::move(tensor));
  return is_contiguous(memory_of(tensor)) ? std::move(tensor) : call(tensor, torch().contiguous);
}

DType dtype_of(py::handle tensor, const dlpack::Tensor& memory) {
  if (memory.dtype == dlpack::kFloat32) return DType::f32;
  if (memory.dtype == dlpack::kBfloat16) return DType::bf16;
  const py::object dtype = attribute(tensor, torch().dtype);
  throw py::type_error("the compiled kernels take float32 and bfloat16, got " + py::cast<std::string>(py::str(dtype)));
}

}  // namespace

const Torch& torch() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<Torch> names;
  return names
      .call_once_and_store_result([] {
        const auto name = [](const char* text) { return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(text)); };
        const py::module_ torch = py::module_::import("torch");
        const py::object tensor = torch.attr("Tensor");
        return Torch{name("dtype"), name("contiguous"), name("is_neg"), name("resolve_neg"),
                     name("seed"), name("draw"), name("stream"), name("row"), name("col"), name("estimator"),
                     name("temperature"), name("prior_logits"), name("grad"),
                     tensor, torch.attr("nn").attr("Parameter"),
                     torch.attr("is_autocast_enabled"), torch.attr("_C").attr("_functorch").attr("peek_interpreter_stack"),
                     exchange_of(tensor)};
      })
      .get_stored();
}

bool known_estimator(py::handle name) { return find_estimator(name).has_value(); }

dlpack::Tensor memory_of(py::handle tensor) {
  dlpack::Tensor memory;
  if (torch().exchange->describe(tensor.ptr(), &memory) != 0) throw py::error_already_set();
  return memory;
}

std::optional<dlpack::Tensor> find_memory(py::handle tensor) {
  dlpack::Tensor memory;
  if (torch().exchange->describe(tensor.ptr(), &memory) == 0) return memory;
  PyErr_Clear();
  return {};
}

Given::Given(py::object given, bool integers) : tensor(std::move(given)) {
  if (tensor.is_none()) return;
  tensor = positive(std::move(tensor));
  dlpack::Tensor memory = memory_of(tensor);
  shape = {memory.shape[0], 1};
  for (const int64_t size : shape_of(memory).subspan(1)) shape.cols *= size;
  matrix.stride = shape.cols;
  if (memory.dimensions == 2 && (memory.strides[1] == 1 || shape.cols <= 1)) {
    matrix.stride = memory.strides[0];
  } else if (!is_contiguous(memory)) {
    tensor = call(tensor, torch().contiguous);
    memory = memory_of(tensor);
  }
  matrix.data = address<void>(memory);
  if (!integers) matrix.dtype = dtype_of(tensor, memory);
}

Dense::Dense(py::object given, int64_t cols) : tensor(std::move(given)) {
  if (tensor.is_none()) return;
  tensor = dense(std::move(tensor));
  const dlpack::Tensor memory = memory_of(tensor);
  matrix = {address<void>(memory), cols, dtype_of(tensor, memory)};
}

Matrix result(py::handle tensor, int64_t cols) {
  if (tensor.is_none()) return {};
  const dlpack::Tensor memory = memory_of(tensor);
  return {address<void>(memory), cols, dtype_of(tensor, memory)};
}

MaskedTensors::MaskedTensors(py::object mask, Shape shape) {
  const Torch& names = torch();
  const py::object seed = positive(attribute(mask, names.seed)), draw = dense(attribute(mask, names.draw));
  const dlpack::Tensor draws = memory_of(draw);
  held = {seed, draw};
  masked.shape = shape;
  masked.seed = address<int64_t>(seed);
  masked.draw = address<int64_t>(draws);
  masked.draws = draws.shape[0];
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
    held.push_back(dense(std::move(rows)));
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
