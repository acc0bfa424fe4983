// stochprune._C.cuda, if the extension was built with nvcc.
#include "bindings.h"
#include "cuda/engine.h"

#include <stdexcept>
#include <string>

namespace stochprune {
namespace {

using At = std::tuple<int, uintptr_t>;              // device, its CUDA stream
using Array = std::tuple<uintptr_t, int64_t, int>;  // address or 0, row stride, dtype

cuda::Launch launch(const At& a) { return {std::get<0>(a), std::get<1>(a)}; }

template <class T>
const T* pointer(uintptr_t p) {
  return reinterpret_cast<const T*>(p);
}

// Throws for an unknown code: a kernel would read the data as another dtype.
DType dtype(const Array& a) {
  const int code = std::get<2>(a);
  if (std::get<0>(a) && (code < 0 || code > int(DType::f16)))
    throw std::invalid_argument("no kernel for dtype " + std::to_string(code));
  return DType(code);
}

ConstMatrix given(const Array& a) { return {pointer<void>(std::get<0>(a)), std::get<1>(a), dtype(a)}; }
Matrix result(const Array& a) { return {reinterpret_cast<void*>(std::get<0>(a)), std::get<1>(a), dtype(a)}; }
Thresholds levels(const Array& a) { return {pointer<uint16_t>(std::get<0>(a)), std::get<1>(a)}; }

Masked masked(Size size, uintptr_t seed, uintptr_t draw, int64_t draws, uint32_t stream, uint64_t row, uint64_t col,
              int estimator, float temperature, Array weight, Array logits, Array threshold, uintptr_t rows) {
  Masked m = {};
  m.shape = shape(size);
  m.seed = pointer<int64_t>(seed);
  m.draw = pointer<int64_t>(draw);
  m.draws = draws;
  m.stream = stream;
  m.row = row;
  m.col = col;
  m.rows = pointer<int64_t>(rows);
  m.relaxation = {Estimator(estimator), temperature};
  m.weight = given(weight);
  m.logits = given(logits);
  m.thresholds = levels(threshold);
  return m;
}

}  // namespace

void bind_cuda(py::module_& m) {
  using py::arg;
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  const Array nothing = {0, 0, 0};
  py::class_<Masked>(m, "Masked", py::module_local())
      .def(py::init(&masked), py::kw_only(), arg("shape"), arg("seed"), arg("draw"), arg("draws"), arg("stream"), arg("row"),
           arg("col"), arg("estimator"), arg("temperature"), arg("weight") = nothing, arg("logits") = nothing,
           arg("threshold") = nothing, arg("rows") = 0);
  m.def(
      "keep_mask",
      [](At at, const Masked& masked, uintptr_t keep) {
        cuda::keep_mask(launch(at), masked, reinterpret_cast<uint8_t*>(keep));
      },
      unlocked);
  m.def(
      "thresholds",
      [](At at, Size s, Array logits, uintptr_t out) {
        cuda::thresholds(launch(at), shape(s), given(logits), reinterpret_cast<uint16_t*>(out));
      },
      unlocked);
  m.def(
      "masked_weight", [](At at, const Masked& masked, Array out) { cuda::masked_weight(launch(at), masked, result(out)); },
      unlocked);
  m.def(
      "weight_grad",
      [](At at, const Masked& masked, Array grad, Array prior, uintptr_t kl_grad, Array dweight, Array dlogits,
         Array masked_weight, bool add) {
        const cuda::KLTerm kl = {given(prior), pointer<double>(kl_grad)};
        cuda::weight_grad(launch(at), masked, given(grad), kl, {result(dweight), result(dlogits), result(masked_weight), add});
      },
      unlocked, arg("launch"), arg("masked"), py::kw_only(), arg("grad"), arg("prior"), arg("kl_grad"), arg("dweight"),
      arg("dlogits"), arg("masked_weight"), arg("add"));
}

}  // namespace stochprune
