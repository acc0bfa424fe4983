// stochprune._C.cuda, where the extension was built with nvcc.
#include "bindings.h"
#include "cuda/engine.h"

namespace stochprune {
namespace {

using At = std::tuple<int, uintptr_t>;  // device, its stream

cuda::Launch launch(const At& a) { return {std::get<0>(a), std::get<1>(a)}; }

ConstMatrix given(const Array& a) { return input(a, DType::f16); }
Matrix result(const Array& a) { return output(a, DType::f16); }

template <class T>
const T* pointer(uintptr_t p) {
  return reinterpret_cast<const T*>(p);
}

cuda::Masked masked(Size size, uintptr_t seed, uintptr_t draw, int draws, uint32_t stream, uint64_t row, uint64_t col,
                    int estimator, float temperature, Array weight, Array logits, uintptr_t rows) {
  return {shape(size),
          pointer<int64_t>(seed),
          pointer<int64_t>(draw),
          draws,
          stream,
          row,
          col,
          pointer<int64_t>(rows),
          {Estimator(estimator), temperature},
          given(weight),
          given(logits)};
}

}  // namespace

void bind_cuda(py::module_& m) {
  using py::arg;
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  const Array nothing = {0, 0, 0};
  py::class_<cuda::Masked>(m, "Masked", py::module_local())
      .def(py::init(&masked), py::kw_only(), arg("shape"), arg("seed"), arg("draw"), arg("draws"), arg("stream"), arg("row"),
           arg("col"), arg("estimator"), arg("temperature"), arg("weight") = nothing, arg("logits") = nothing, arg("rows") = 0);
  m.def(
      "keep_mask",
      [](At at, const cuda::Masked& masked, Array t, uintptr_t mask) {
        cuda::keep_mask(launch(at), masked, pointer<uint16_t>(std::get<0>(t)), std::get<1>(t), reinterpret_cast<uint8_t*>(mask));
      },
      unlocked);
  m.def(
      "thresholds",
      [](At at, Size s, Array logits, uintptr_t out) {
        cuda::thresholds(launch(at), shape(s), given(logits), reinterpret_cast<uint16_t*>(out));
      },
      unlocked);
  m.def(
      "masked_weight", [](At at, const cuda::Masked& masked, Array out) { cuda::masked_weight(launch(at), masked, result(out)); },
      unlocked);
  m.def(
      "weight_grad",
      [](At at, const cuda::Masked& masked, Array grad, Array prior, uintptr_t kl_grad, Array dweight, Array dlogits, bool add) {
        const cuda::KLTerm kl = {given(prior), pointer<double>(kl_grad)};
        cuda::weight_grad(launch(at), masked, given(grad), kl, {result(dweight), result(dlogits), add});
      },
      unlocked, arg("place"), arg("masked"), py::kw_only(), arg("grad"), arg("prior"), arg("kl_grad"), arg("dweight"),
      arg("dlogits"), arg("add"));
}

}  // namespace stochprune
