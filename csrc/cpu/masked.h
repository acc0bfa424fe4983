// Masked weights and the gradients through their masks, for each estimator; part of kernels_impl.h.
#pragma once
#include "decide.h"

namespace stochprune {
namespace {

// The binary concrete mask of Maddison et al. 2017: sigmoid((logit - logit(v)) / temperature).
inline Sigmoid concrete(const float* logits, const uint16_t* u, float inverse_temperature, const float* table) {
  alignas(64) float l[kLanes];
  for (int i = 0; i < kLanes; ++i) l[i] = table[u[i] & 0x7FFF];
  return sigmoid((load<f32v>(logits) - load<f32v>(l)) * inverse_temperature);
}

// A soft mask and its slope dz/dlogit. The hard concrete mask is stretched to (-0.1, 1.1) and clamped (Louizos et al. 2018).
template <Estimator E>
inline Sigmoid soft_mask(const float* logits, const uint16_t* u, float inverse_temperature, const float* table) {
  if constexpr (E == Estimator::expected) return sigmoid(load<f32v>(logits));
  Sigmoid s = concrete(logits, u, inverse_temperature, table);
  s.slope = s.slope * inverse_temperature;
  if constexpr (E == Estimator::hard_concrete) {
    const f32v z = s.value * 1.2f - 0.1f;
    const i32v low = z <= 0.0f, high = z >= 1.0f;
    s.value = low ? splat(0.0f) : high ? splat(1.0f) : z;
    s.slope = zero_unless(~(low | high), s.slope * 1.2f);
  }
  return s;
}

constexpr bool is_hard(Estimator e) {
  return e == Estimator::straight_through || e == Estimator::straight_through_concrete;
}

void keep_mask(const Masked& m, uint8_t* mask) {
  const BlockUniforms uniforms(m);
  for_each_block(m.col, m.shape, [&](const Block& b) __attribute__((always_inline)) {
    Buffer<uint16_t> u, copy;
    uniforms(b, u.v);
    const uint16_t* t = read(m.thresholds, b, copy);
    uint8_t keep[kGroup];
    for (int i = 0; i < kGroup; ++i) keep[i] = (u.v[i] & 0x7FFF) < t[i];
    std::memcpy(mask + b.row * m.shape.cols + b.col, keep + b.begin, b.count);
  });
}

bool thresholds(Shape shape, ConstMatrix logits, uint16_t* out) {
  NanWatch nan;
  for_each_block(0, shape, [&](const Block& b) __attribute__((always_inline)) {
    Buffer<float> copy;
    Buffer<uint16_t> t;
    exact_thresholds(read(logits, b, copy), t.v, nan);
    std::memcpy(out + b.row * shape.cols + b.col, t.v + b.begin, b.count * sizeof(uint16_t));
  });
  return nan.found();
}

// A block of bfloat16 under a hard mask: no float is needed.
inline void keep_words(uint64_t bits, const uint16_t* from, uint16_t* to) {
  for (int i = 0; i < kGroup; i += 2 * kLanes) store(to + i, u16w(load<u16w>(from + i) & words_of(bits, i)));
}

template <Estimator E>
bool masked_weight_as(const Masked& m, Matrix out, Bits keep) {
  const Tables& table = tables();
  const float inverse_temperature = 1.0f / m.relaxation.temperature;
  const bool large = is_large(m.shape), both_half = m.weight.dtype == DType::bf16 && out.dtype == DType::bf16;
  const BlockUniforms uniforms(m);
  NanWatch nan;
  for_each_block(m.col, m.shape, [&](const Block& b) __attribute__((always_inline)) {
    Buffer<float> wbuf, lbuf, obuf;
    Buffer<uint16_t> u, tbuf;
    const Block from = source(m, b);
    const auto write_each = [&](auto&& masked) {
      const float* w = read(m.weight, from, wbuf);
      float* o = target(out, b, obuf);
      const bool past = large && o != obuf.v;
      for (int i = 0; i < kGroup; i += kLanes) {
        const f32v v = masked(i, load<f32v>(w + i));
        past ? stream(o + i, v) : store(o + i, v);
      }
      write(out, b, o);
    };
    if constexpr (E != Estimator::expected) uniforms(b, u.v);
    if constexpr (is_hard(E)) {
      const uint64_t bits = m.thresholds.data ? kept_bits(u.v, read(m.thresholds, from, tbuf))
                                              : kept_by_logits(read(m.logits, from, lbuf), u.v, nan);
      if (keep.data) word_of(keep, m, b) = bits;
      if (both_half && b.whole()) {
        keep_words(bits, half_words(m.weight, from), half_words(out, b));
      } else {
        write_each([&](int i, f32v w) { return zero_unless(lanes_of(bits, i), w); });
      }
    } else {
      const float* l = read(m.logits, from, lbuf);
      write_each([&](int i, f32v w) {
        nan.see(load<f32v>(l + i));
        return soft_mask<E>(l + i, u.v + i, inverse_temperature, table.logit).value * w;
      });
    }
  });
  stream_fence();
  return nan.found();
}

template <Estimator E>
void weight_grad_as(const Masked& m, ConstMatrix grad, Bits keep, Divergence kl, Gradients to) {
  constexpr bool relaxed = E != Estimator::straight_through && E != Estimator::expected;
  const Tables& table = tables();
  const float inverse_temperature = 1.0f / m.relaxation.temperature;
  const bool fresh = !to.add && (to.past_caches || is_large(m.shape));
  const bool both_half = is_hard(E) && !to.add && grad.dtype == DType::bf16 && to.weight.dtype == DType::bf16;
  const BlockUniforms uniforms(m);
  NanWatch nan;  // not used: forward has refused NaN
  for_each_block(m.col, m.shape, [&](const Block& b) __attribute__((always_inline)) {
    Buffer<float> gbuf, wbuf, lbuf, pbuf, slopes, dw, dl;
    Buffer<uint16_t> u, tbuf;
    const Block from = source(m, b);
    const float* g = read(grad, b, gbuf);
    const float* l = read(m.logits, from, lbuf);
    const bool resample = relaxed || (is_hard(E) && to.weight.data && !keep.data);
    if (resample) uniforms(b, u.v);
    const bool as_words = both_half && b.whole();
    uint64_t bits = 0;
    if (is_hard(E) && to.weight.data) {
      bits = keep.data           ? word_of(keep, m, b)
             : m.thresholds.data ? kept_bits(u.v, read(m.thresholds, from, tbuf))
                                 : kept_by_logits(l, u.v, nan);
      if (!as_words) {
        for (int i = 0; i < kGroup; i += kLanes) store(dw.v + i, zero_unless(lanes_of(bits, i), load<f32v>(g + i)));
      }
    }
    if (to.logits.data || !is_hard(E)) {
      for (int i = 0; i < kGroup; i += kLanes) {
        if constexpr (E == Estimator::straight_through) {
          store(slopes.v + i, sigmoid_slope(load<f32v>(l + i)));
        } else {
          const Sigmoid z = soft_mask<E>(l + i, u.v + i, inverse_temperature, table.logit);
          store(slopes.v + i, z.slope);
          if constexpr (!is_hard(E)) store(dw.v + i, load<f32v>(g + i) * z.value);
        }
      }
    }
    if (to.logits.data) {
      const float* w = read(m.weight, from, wbuf);
      for (int i = 0; i < kGroup; i += kLanes) {
        store(dl.v + i, load<f32v>(g + i) * load<f32v>(w + i) * load<f32v>(slopes.v + i));
      }
      if (kl.prior.data) {
        const float* p = read(kl.prior, b, pbuf);
        for (int i = 0; i < kGroup; i += kLanes) {
          const f32v x = load<f32v>(l + i), s = relaxed ? sigmoid_slope(x) : load<f32v>(slopes.v + i);
          const i32v finite = (x < 88.0f) & (x > -88.0f);  // outside, the slope is 0 in float32
          store(dl.v + i, load<f32v>(dl.v + i) + zero_unless(finite, (x - load<f32v>(p + i)) * (s * kl.scale)));
        }
      }
    }
    // Written last, because either may alias the gradient.
    if (to.weight.data && as_words) {
      keep_words(bits, half_words(grad, b), half_words(to.weight, b));
    } else if (to.weight.data) {
      write_sum(to.weight, b, dw, to.add, fresh && to.weight.data != grad.data);
    }
    if (to.logits.data) write_sum(to.logits, b, dl, to.add, fresh && to.logits.data != grad.data);
  });
  if (!to.past_caches) stream_fence();
}

// Runs f.template operator()<E>() for the run-time estimator.
template <class F>
auto with_estimator(Estimator e, F&& f) {
  switch (e) {
    case Estimator::straight_through:
      return f.template operator()<Estimator::straight_through>();
    case Estimator::concrete:
      return f.template operator()<Estimator::concrete>();
    case Estimator::straight_through_concrete:
      return f.template operator()<Estimator::straight_through_concrete>();
    case Estimator::hard_concrete:
      return f.template operator()<Estimator::hard_concrete>();
    default:
      return f.template operator()<Estimator::expected>();
  }
}

bool masked_weight(const Masked& m, Matrix out, Bits keep) {
  return with_estimator(m.relaxation.estimator, [&]<Estimator E>() { return masked_weight_as<E>(m, out, keep); });
}

void weight_grad(const Masked& m, ConstMatrix grad, Bits keep, Divergence kl, Gradients to) {
  with_estimator(m.relaxation.estimator, [&]<Estimator E>() { weight_grad_as<E>(m, grad, keep, kl, to); });
}

}  // namespace
}  // namespace stochprune
