// stochprune._C: the kernels for Python. Only the files named bindings and tensors use Python; no file uses torch's headers.
#include "bindings.h"

#include <cstdlib>
#include <memory>

#include "cpu/engine.h"
#include "tensors.h"

using namespace stochprune;

namespace {

using py::arg;
using py::object;
using Part = std::optional<std::tuple<int64_t, int64_t>>;  // first row and number of rows; none: all rows

// Runs a kernel without the GIL.
template <class F>
auto unlocked(F&& kernel) {
  const py::gil_scoped_release released;
  return kernel();
}

// The same for kernels that return whether a logit is NaN.
template <class F>
void checked(F&& kernel) {
  if (unlocked(kernel)) throw py::value_error("logits contain NaN");
}

Rows rows_of(const MaskedTensors& m, const Part& part) {
  return part ? Rows{std::get<0>(*part), std::get<1>(*part)} : Rows{0, m.masked.shape.rows};
}

// Hard masks as bits, which the forward pass leaves to the backward pass. Python only holds them.
struct HeldBits {
  std::unique_ptr<uint64_t[]> words;
  int64_t groups;  // words of a row

  HeldBits(int64_t rows, int64_t words_of_row) : words(new uint64_t[size_t(rows * words_of_row)]), groups(words_of_row) {}
};

Bits bits_of(const HeldBits* held) { return held ? Bits{held->words.get(), held->groups} : Bits{}; }

// The KL term of a loss: stochprune.address.KLTerm, or None.
struct GivenKL {
  Given prior;
  float scale;

  explicit GivenKL(const object& kl)
      : prior(kl.is_none() ? kl : attribute(kl, torch().prior_logits)),
        scale(kl.is_none() ? 0.0f : py::float_(attribute(kl, torch().grad)).cast<float>()) {}
  operator Divergence() const { return {prior, scale}; }
};

int64_t examples_of(py::handle x) {  // M of [D, M, K] or [M, K]
  const auto sizes = shape_of(x);
  return sizes[sizes.size() - 2];
}

int64_t count_of(py::handle tensor) {
  int64_t count = 1;
  for (const int64_t size : shape_of(tensor)) count *= size;
  return count;
}

// Tensors of any shape, each as one row.
struct Flat {
  std::vector<Dense> inputs;
  int64_t count;

  explicit Flat(const std::vector<object>& tensors) : count(count_of(tensors[0])) {
    for (const object& t : tensors) inputs.emplace_back(t, count);
  }
  Gaussians gaussians() const { return {inputs[0], inputs[1], inputs[2], inputs[3], inputs[4]}; }
};

void bind_masked(py::module_& m) {
  py::class_<MaskedTensors>(m, "Masked", py::module_local())
      .def(py::init<object, object, object, object, object>(), arg("mask"), arg("weight") = py::none(),
           arg("logits") = py::none(), arg("threshold") = py::none(), arg("rows") = py::none())
      .def_property_readonly("shape", [](const MaskedTensors& m) {
        const auto [rows, cols] = m.masked.shape;
        return Size{rows, cols};
      });
  py::class_<HeldBits>(m, "Bits", py::module_local());
  m.def("keep_mask", [](const MaskedTensors& m, const object& keep, int threads) {
    const auto out = address<uint8_t>(keep);
    unlocked([&] { keep_mask(m.masked, out, threads); });
  });
  m.def("stochastic_round", [](const MaskedTensors& m, const object& rounded, int threads) {
    const auto out = address<uint16_t>(rounded);
    unlocked([&] { stochastic_round(m.masked, out, threads); });
  });
  m.def(
      "masked_weight",
      [](const MaskedTensors& m, const object& out, bool keep_bits, int threads, const Part& part) {
        const Matrix to = result(out, m.masked.shape.cols);
        const Rows rows = rows_of(m, part);
        std::unique_ptr<HeldBits> held;
        if (keep_bits && m.groups()) held = std::make_unique<HeldBits>(m.masked.draws * rows.count, m.groups());
        checked([&] { return masked_weight(m.masked, rows, to, bits_of(held.get()), threads); });
        return held;
      },
      arg("masked"), arg("out"), arg("keep_bits"), arg("threads"), arg("part") = py::none());
  m.def(
      "weight_grad",
      [](const MaskedTensors& m, const object& grad, const HeldBits* bits, const std::tuple<object, object>& to, int threads,
         const object& kl, bool add, const Part& part) {
        const int64_t cols = m.masked.shape.cols;
        const auto& [dweight, dlogits] = to;
        const Dense g(grad, cols);
        const GivenKL term(kl);
        const Gradients grads{result(dweight, cols), result(dlogits, cols), add};
        unlocked([&] { weight_grad(m.masked, rows_of(m, part), g, bits_of(bits), term, grads, threads); });
      },
      arg("masked"), arg("grad"), arg("bits"), arg("to"), arg("threads"), arg("kl") = py::none(), arg("add") = false,
      arg("part") = py::none());
  m.def("nm_masked_weight", [](const MaskedTensors& m, std::tuple<int, int> pattern, const object& out, int threads) {
    const auto [kept, group] = pattern;
    const Matrix to = result(out, m.masked.shape.cols);
    checked([&, p = Pattern{kept, group}] { return nm_masked_weight(m.masked, p, to, threads); });
  });
  m.def("nm_weight_grad", [](const MaskedTensors& m, std::tuple<int, int> pattern, const object& grad, const object& dweight,
                             const object& dlogits, int threads) {
    const auto [kept, group] = pattern;
    const int64_t cols = m.masked.shape.cols;
    const Dense g(grad, cols);
    const Gradients to{result(dweight, cols), result(dlogits, cols), false};
    unlocked([&, p = Pattern{kept, group}] { nm_weight_grad(m.masked, p, g, to, threads); });
  });
}

// Runs a tile kernel. Returns False if a product of float32 is not finite.
template <class F>
bool finite(F&& kernel) {
  const Found found = unlocked(kernel);
  if (found.nan_logit) throw py::value_error("logits contain NaN");
  return !found.not_finite;
}

void bind_tiles(py::module_& m) {
  m.def("has_tiles", [] { return tile_kernels() != nullptr; });
  m.def("tile_bytes", [](const MaskedTensors& m, const object& x, int threads) {
    return tile_bytes(m.masked, examples_of(x), result(x, m.masked.shape.cols).dtype, threads);
  });
  m.def("tile_forward", [](const MaskedTensors& m, const object& x, const object& bias, const object& y, const object& memory,
                           int threads) {
    const Dense from(x, m.masked.shape.cols), b(bias, m.masked.shape.rows);
    const Activations in{from.matrix.data, examples_of(x), from.matrix.dtype};
    void* const out = result(y, m.masked.shape.rows).data;
    const auto scratch = address<char>(memory);
    return finite([&] { return tile_forward(m.masked, in, b, out, scratch, threads); });
  });
  m.def("tile_backward", [](const MaskedTensors& m, const object& x, const object& grad, const object& dx,
                            const std::tuple<object, object>& to, const object& kl, const object& memory, int threads) {
    const int64_t cols = m.masked.shape.cols;
    const auto& [dweight, dlogits] = to;
    const Dense from(x, cols), g(grad, m.masked.shape.rows);
    const DType dtype = from.matrix.dtype;
    if (g.matrix.dtype != dtype) throw py::type_error("tile_backward: grad must have the dtype of x");
    const int64_t examples = examples_of(x);
    const GivenKL term(kl);
    const Gradients grads{result(dweight, cols), result(dlogits, cols), false};
    void* const out = result(dx, cols).data;
    const auto scratch = address<char>(memory);
    const auto given = [&](const Dense& d) { return Activations{d.matrix.data, examples, dtype}; };
    return finite([&] { return tile_backward(m.masked, given(from), given(g), out, term, grads, scratch, threads); });
  });
}

void bind_gaussian(py::module_& m) {
  m.def("normal", [](const object& mask, std::tuple<int64_t, int64_t> size, const object& out, int threads) {
    const MaskedTensors at(mask, shape(size));
    const Matrix to = result(out, at.masked.shape.cols);
    unlocked([&] { gaussian_weight(at.masked, {}, {}, to, threads); });
  });
  m.def("gaussian_weight", [](const object& mask, const object& mu, const object& rho, const object& out, int threads) {
    const Given mean(mu), r(rho);
    const MaskedTensors at(mask, mean.shape);
    const Matrix to = result(out, mean.shape.cols);
    unlocked([&] { gaussian_weight(at.masked, mean, r, to, threads); });
  });
  m.def("gaussian_grad", [](const object& mask, const object& grad, const object& rho, const object& drho, int threads) {
    const Given r(rho);
    const Dense g(grad, r.shape.cols);
    const MaskedTensors at(mask, r.shape);
    const Matrix to = result(drho, r.shape.cols);
    unlocked([&] { gaussian_grad(at.masked, g, r, to, threads); });
  });
  m.def("moments", [](const object& weight, const object& logits, const object& rho, const object& mean, const object& variance,
                      int threads) {
    const Given w(weight), l(logits), r(rho);
    const Matrix m = result(mean, w.shape.cols), v = result(variance, w.shape.cols);
    checked([&] { return moments(w.shape, w, l, r, m, v, threads); });
  });
  m.def("moments_grad", [](const object& dmean, const object& dvariance, const object& weight, const object& logits,
                           const object& rho, const object& dweight, const object& dlogits, const object& drho, int threads) {
    const Given m(dmean), v(dvariance), w(weight), l(logits), r(rho);
    const int64_t cols = w.shape.cols;
    const Matrix dw = result(dweight, cols), dl = result(dlogits, cols), dr = result(drho, cols);
    unlocked([&] { moments_grad(w.shape, m, v, w, l, r, dw, dl, dr, threads); });
  });
}

void bind_sparse(py::module_& m) {
  m.def("sparse_linear", [](const object& x, const object& values, const object& columns, const object& first,
                            const object& bias, const object& out, int threads) {
    const auto sizes = shape_of(x);
    const Dense from(x, sizes[1]);
    const SparseRows w{address<float>(values), address<uint16_t>(columns), address<int64_t>(first)};
    const Shape shape{shape_of(first)[0] - 1, sizes[1]};
    const auto b = address<float>(bias), to = address<float>(out);
    unlocked([&] { sparse_linear(shape, w, sizes[0], static_cast<const float*>(from.matrix.data), b, to, threads); });
  });
}

void bind_kl(py::module_& m) {
  m.def("bernoulli_kl", [](const object& logits, const object& prior, int threads) {
    const Flat f({logits, prior});
    return unlocked([&] { return bernoulli_kl(f.count, f.inputs[0], f.inputs[1], threads); });
  });
  m.def("bernoulli_kl_grad", [](double scale, const object& logits, const object& prior, const object& dlogits,
                                const object& dprior, int threads) {
    const Flat f({logits, prior});
    const Matrix dl = result(dlogits, f.count), dp = result(dprior, f.count);
    unlocked([&] { bernoulli_kl_grad(f.count, scale, f.inputs[0], f.inputs[1], dl, dp, threads); });
  });
  m.def("gaussian_kl", [](const std::vector<object>& inputs, int threads) {
    const Flat f(inputs);
    return unlocked([&] { return gaussian_kl(f.count, f.gaussians(), threads); });
  });
  m.def("gaussian_kl_grad", [](double scale, const std::vector<object>& inputs, const std::vector<object>& grads, int threads) {
    const Flat f(inputs);
    const auto to = [&](int i) { return result(grads[size_t(i)], f.count); };
    const GaussianGrads d{to(0), to(1), to(2), to(3), to(4)};
    unlocked([&] { gaussian_kl_grad(f.count, scale, f.gaussians(), d, threads); });
  });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("variable", [](const char* name) -> const char* { return std::getenv(name); });
  m.def("instruction_sets", &instruction_sets);
  m.def("instruction_set", &instruction_set);
  m.def("use_instruction_set", &use_instruction_set);
  m.def("thresholds", [](const object& logits, const object& out, int threads) {
    const auto sizes = shape_of(logits);
    const int64_t cols = sizes.empty() ? 1 : sizes.back(), rows = cols ? count_of(logits) / cols : 0;
    const Dense l(logits, cols);
    const auto to = address<uint16_t>(out);
    checked([&] { return thresholds({rows, cols}, l, to, threads); });
  });
  bind_checks(m);
  bind_masked(m);
  bind_tiles(m);
  bind_gaussian(m);
  bind_sparse(m);
  bind_kl(m);
  m.def("advise_huge_pages", [](uintptr_t data, size_t bytes) { advise_huge_pages(reinterpret_cast<void*>(data), bytes); });
#ifdef STOCHPRUNE_CUDA
  py::module_ cuda = m.def_submodule("cuda");
  bind_cuda(cuda);
#endif
}
