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

Key key(const Address& a) { return {a.seed, a.draws, a.stream, a.row, a.col / kGroup, a.rows}; }

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

void keep_mask(Launch at, Address address, Shape shape, const uint16_t* threshold, int64_t stride, uint8_t* mask) {
  const int shift = int(address.col % kGroup);  // the groups are the contract's, wherever the matrix starts
  const bool wide = shift == 0 && aligned(threshold, 2 * stride) && aligned(mask, shape.cols);
  run(KeepMask{threshold, stride, mask, shape.cols, wide}, make_grid(shape, shift), key(address), 1, at.device, at.stream);
}

void thresholds(Launch at, Shape shape, ConstMatrix logits, uint16_t* out) {
  Cells from = cells(logits);
  from.wide = from.wide && aligned(out, 2 * shape.cols);
  run(FormThresholds{from, out, shape.cols}, make_grid(shape), {}, 1, at.device, at.stream);
}

void masked_weight(Launch at, Address address, int draws, Shape shape, Relaxation relaxation, ConstMatrix weight,
                   ConstMatrix logits, Matrix out) {
  with_estimator(relaxation.estimator, [&](auto estimator) {
    const MaskWeight<decltype(estimator)::value> op = {cells(weight), cells(logits), cells(out), shape.rows,
                                                       relaxation.temperature};
    run(op, make_grid(shape), key(address), draws, at.device, at.stream);
  });
}

void weight_grad(Launch at, Address address, Shape shape, Relaxation relaxation, ConstMatrix grad, ConstMatrix weight,
                 ConstMatrix logits, ConstMatrix prior, const double* kl_grad, Matrix dweight, Matrix dlogits, bool add) {
  with_estimator(relaxation.estimator, [&](auto estimator) {
    const WeightGrad<decltype(estimator)::value> op = {
        cells(grad), cells(weight),  cells(logits),          cells(prior), kl_grad,
        cells(dweight), cells(dlogits), relaxation.temperature, add};
    run(op, make_grid(shape), key(address), 1, at.device, at.stream);
  });
}

}  // namespace stochprune::cuda
