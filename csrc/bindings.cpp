// stochprune._C: the kernels for Python, by raw address. Only the files called bindings know Python; none knows torch.
#include "bindings.h"

#include <array>

#include "cpu/engine.h"

using namespace stochprune;

namespace {

Address address(const Key& k) { return {std::get<0>(k), std::get<1>(k), std::get<2>(k), std::get<3>(k), std::get<4>(k)}; }

// The same, or the rows at an address that is not 0.
Address address(const Key& k, uintptr_t rows) {
  Address a = address(k);
  a.rows = reinterpret_cast<const int64_t*>(rows);
  return a;
}

Thresholds levels(const Array& a) { return {reinterpret_cast<const uint16_t*>(std::get<0>(a)), std::get<1>(a)}; }

using Five = std::array<Array, 5>;  // mu, sigma, prior_mu, prior_sigma, logits

Gaussians gaussians(const Five& a) { return {input(a[0]), input(a[1]), input(a[2]), input(a[3]), input(a[4])}; }

Bits bits(const Array& a) { return {reinterpret_cast<uint64_t*>(std::get<0>(a)), std::get<1>(a)}; }

}  // namespace

PYBIND11_MODULE(_C, m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def("instruction_sets", &instruction_sets);
  m.def("instruction_set", &instruction_set);
  m.def("use_instruction_set", &use_instruction_set);
  m.def(
      "keep_mask",
      [](Key k, Size s, Array t, Array mask, int threads) {
        keep_mask(address(k), shape(s), levels(t), reinterpret_cast<uint8_t*>(std::get<0>(mask)), std::get<1>(mask), threads);
      },
      unlocked);
  m.def(
      "thresholds",
      [](Size s, Array logits, Array out, int threads) {
        return thresholds(shape(s), input(logits), reinterpret_cast<uint16_t*>(std::get<0>(out)), std::get<1>(out), threads);
      },
      unlocked);
  m.def(
      "masked_weight",
      [](Key k, Size s, int estimator, float temperature, Array weight, Array logits, Array t, Array out, Array kept, int threads,
         uintptr_t rows) {
        return masked_weight(address(k, rows), shape(s), {Estimator(estimator), temperature}, input(weight), input(logits), levels(t),
                             output(out), bits(kept), threads);
      },
      unlocked);
  m.def(
      "weight_grad",
      [](Key k, Size s, int estimator, float temperature, Array grad, Array weight, Array logits, Array t, Array kept,
         Array prior, float scale, Array dweight, Array dlogits, bool accumulate, int threads, uintptr_t rows) {
        weight_grad(address(k, rows), shape(s), {Estimator(estimator), temperature}, input(grad), input(weight), input(logits),
                    levels(t), bits(kept), {input(prior), scale}, output(dweight), output(dlogits), accumulate, threads);
      },
      unlocked);
  m.def(
      "nm_masked_weight",
      [](Key k, Size s, std::tuple<int, int> pattern, Array weight, Array logits, Array out, int threads) {
        const auto [kept, group] = pattern;
        return nm_masked_weight(address(k), shape(s), kept, group, input(weight), input(logits), output(out), threads);
      },
      unlocked);
  m.def(
      "nm_weight_grad",
      [](Key k, Size s, std::tuple<int, int> pattern, Array grad, Array weight, Array logits, Array dweight, Array dlogits,
         bool accumulate, int threads) {
        const auto [kept, group] = pattern;
        nm_weight_grad(address(k), shape(s), kept, group, input(grad), input(weight), input(logits), output(dweight),
                       output(dlogits), accumulate, threads);
      },
      unlocked);
  m.def(
      "moments",
      [](Size s, Array weight, Array logits, Array rho, Array mean, Array variance, int threads) {
        return moments(shape(s), input(weight), input(logits), input(rho), output(mean), output(variance), threads);
      },
      unlocked);
  m.def(
      "moments_grad",
      [](Size s, Array dmean, Array dvariance, Array weight, Array logits, Array rho, Array dweight, Array dlogits, Array drho,
         int threads) {
        moments_grad(shape(s), input(dmean), input(dvariance), input(weight), input(logits), input(rho), output(dweight),
                     output(dlogits), output(drho), threads);
      },
      unlocked);
  m.def(
      "gaussian_weight",
      [](Key k, Size s, Array mu, Array rho, Array out, int threads) {
        gaussian_weight(address(k), shape(s), input(mu), input(rho), output(out), threads);
      },
      unlocked);
  m.def(
      "gaussian_grad",
      [](Key k, Size s, Array grad, Array rho, Array drho, bool accumulate, int threads) {
        gaussian_grad(address(k), shape(s), input(grad), input(rho), output(drho), accumulate, threads);
      },
      unlocked);
  m.def(
      "bernoulli_kl",
      [](int64_t count, Array logits, Array prior, int threads) {
        return bernoulli_kl(count, input(logits), input(prior), threads);
      },
      unlocked);
  m.def(
      "bernoulli_kl_grad",
      [](int64_t count, double scale, Array logits, Array prior, Array dlogits, Array dprior, int threads) {
        bernoulli_kl_grad(count, scale, input(logits), input(prior), output(dlogits), output(dprior), threads);
      },
      unlocked);
  m.def(
      "gaussian_kl", [](int64_t count, Five g, int threads) { return gaussian_kl(count, gaussians(g), threads); }, unlocked);
  m.def(
      "gaussian_kl_grad",
      [](int64_t count, double scale, Five g, Five d, int threads) {
        const GaussianGrads grads{output(d[0]), output(d[1]), output(d[2]), output(d[3]), output(d[4])};
        gaussian_kl_grad(count, scale, gaussians(g), grads, threads);
      },
      unlocked);
  m.def(
      "advise_huge_pages", [](uintptr_t data, size_t bytes) { advise_huge_pages(reinterpret_cast<void*>(data), bytes); },
      unlocked);
#ifdef STOCHPRUNE_CUDA
  py::module_ cuda = m.def_submodule("cuda");
  bind_cuda(cuda);
#endif
}
