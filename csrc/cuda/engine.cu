#include "engine.h"

#include <type_traits>

#include "ops.h"
#include "run.h"

namespace stochprune::cuda {
namespace {

size_t size_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

bool aligned(const void* data, int64_t row_bytes) { return (uintptr_t(data) | uintptr_t(row_bytes)) % 16 == 0; }

Cells cells(const void* data, int64_t stride, DType dtype) {
  return {const_cast<void*>(data), stride, dtype, aligned(data, stride * int64_t(size_of(dtype)))};
}
Cells cells(const ConstMatrix& m) { return cells(m.data, m.stride, m.dtype); }
Cells cells(const Matrix& m) { return cells(m.data, m.stride, m.dtype); }

Key key(const Masked& m) { return {m.seed, m.draw, m.stream, m.row, m.col / kGroup, m.rows}; }

// The groups are those of the contract; the matrix may start inside a group.
Grid grid(const Masked& m) { return make_grid(m.shape, int(m.col % kGroup)); }

// A thread works on eight columns that start at a multiple of 8 in the contract's matrix. If the first column of this
// matrix is not a multiple of 8, they are not aligned in memory.
template <class M>
Cells cells(const M& matrix, const Masked& m) {
  Cells c = cells(matrix);
  c.wide = c.wide && m.col % kColumns == 0;
  return c;
}

template <class F>
void with_estimator(Estimator estimator, F&& f) {
  switch (estimator) {
    case Estimator::straight_through: return f(std::integral_constant<Estimator, Estimator::straight_through>());
    case Estimator::concrete: return f(std::integral_constant<Estimator, Estimator::concrete>());
    case Estimator::straight_through_concrete:
      return f(std::integral_constant<Estimator, Estimator::straight_through_concrete>());
    case Estimator::expected: return f(std::integral_constant<Estimator, Estimator::expected>());
    case Estimator::hard_concrete: return f(std::integral_constant<Estimator, Estimator::hard_concrete>());
  }
}

}  // namespace

void keep_mask(Launch at, const Masked& m, uint8_t* keep) {
  const Thresholds t = m.thresholds;
  const bool wide = m.col % kColumns == 0 && aligned(t.data, 2 * t.stride) && aligned(keep, m.shape.cols);
  run(KeepMask{t, keep, m.shape.cols, wide}, grid(m), key(m), 1, at.device, at.stream);
}

void thresholds(Launch at, Shape shape, ConstMatrix logits, uint16_t* out) {
  Cells from = cells(logits);
  from.wide = from.wide && aligned(out, 2 * shape.cols);
  run(FormThresholds{from, out, shape.cols}, make_grid(shape), {}, 1, at.device, at.stream);
}

void masked_weight(Launch at, const Masked& m, Matrix out) {
  with_estimator(m.relaxation.estimator, [&](auto estimator) {
    const MaskWeight<decltype(estimator)::value> op = {cells(m.weight, m), cells(m.logits, m),
                                                       cells(out, m), m.shape.rows, m.relaxation.temperature};
    run(op, grid(m), key(m), m.draws, at.device, at.stream);
  });
}

void weight_grad(Launch at, const Masked& m, ConstMatrix grad, KLTerm kl, Gradients to) {
  with_estimator(m.relaxation.estimator, [&](auto estimator) {
    const WeightGrad<decltype(estimator)::value> op = {cells(grad, m),
                                                       cells(m.weight, m),
                                                       cells(m.logits, m),
                                                       cells(kl.prior, m),
                                                       kl.grad,
                                                       cells(to.dweight, m),
                                                       cells(to.dlogits, m),
                                                       cells(to.masked_weight, m),
                                                       m.relaxation.temperature,
                                                       to.add};
    run(op, grid(m), key(m), 1, at.device, at.stream);
  });
}

}  // namespace stochprune::cuda
