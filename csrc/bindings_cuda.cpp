// stochprune._C.cuda, where the extension was built with nvcc.
#include "bindings.h"
#include "cuda/engine.h"

namespace stochprune {
namespace {

using At = std::tuple<int, uintptr_t>;                                             // device, its stream
using DeviceKey = std::tuple<uintptr_t, uintptr_t, uint32_t, uint64_t, uint64_t>;  // as Key, seed and draws by address

cuda::Launch launch(const At& a) { return {std::get<0>(a), std::get<1>(a)}; }

ConstMatrix given(const Array& a) { return input(a, DType::f16); }
Matrix result(const Array& a) { return output(a, DType::f16); }

const int64_t* integers(uintptr_t p) { return reinterpret_cast<const int64_t*>(p); }

cuda::Address address(const DeviceKey& k, uintptr_t rows = 0) {
  return {integers(std::get<0>(k)), integers(std::get<1>(k)), std::get<2>(k), std::get<3>(k), std::get<4>(k), integers(rows)};
}

}  // namespace

void bind_cuda(py::module_& m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def(
      "keep_mask",
      [](At at, DeviceKey k, Size s, Array t, uintptr_t mask) {
        cuda::keep_mask(launch(at), address(k), shape(s), reinterpret_cast<const uint16_t*>(std::get<0>(t)), std::get<1>(t),
                        reinterpret_cast<uint8_t*>(mask));
      },
      unlocked);
  m.def(
      "thresholds",
      [](At at, Size s, Array logits, uintptr_t out) {
        cuda::thresholds(launch(at), shape(s), given(logits), reinterpret_cast<uint16_t*>(out));
      },
      unlocked);
  m.def(
      "masked_weight",
      [](At at, DeviceKey k, int draws, Size s, int estimator, float temperature, Array weight, Array logits, Array out,
         uintptr_t rows) {
        cuda::masked_weight(launch(at), address(k, rows), draws, shape(s), {Estimator(estimator), temperature}, given(weight),
                            given(logits), result(out));
      },
      unlocked);
  m.def(
      "weight_grad",
      [](At at, DeviceKey k, Size s, int estimator, float temperature, Array grad, Array weight, Array logits, Array prior,
         uintptr_t kl_grad, Array dweight, Array dlogits, bool add, uintptr_t rows) {
        cuda::weight_grad(launch(at), address(k, rows), shape(s), {Estimator(estimator), temperature}, given(grad), given(weight),
                          given(logits), given(prior), reinterpret_cast<const double*>(kl_grad), result(dweight),
                          result(dlogits), add);
      },
      unlocked);
}

}  // namespace stochprune
