// The CPU kernels, written once on blocks of 64 columns and compiled for each instruction set.
//
// A block is one group of the contract: 64 columns of one row that share eight Philox calls. A matrix whose first
// column is not a multiple of 64, or whose last block is short, uses lanes [begin, begin + count) of a block; the
// other lanes hold zeros, are computed and thrown away, so that no loop below has a tail.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace stochprune {
namespace {

template <class T>
struct alignas(64) Buffer {
  T v[kGroup];
};

struct Block {
  int64_t row, col;  // of its first weight inside the matrix
  int begin, count;
  uint64_t group;

  bool whole() const { return count == kGroup; }
};

template <class F>
inline void for_each_block(const Address& a, Shape shape, F&& body) {
  for (int64_t row = 0; row < shape.rows; ++row) {
    for (int64_t col = 0; col < shape.cols;) {
      const int begin = int((a.col + col) % kGroup);
      const int64_t left = shape.cols - col;
      const int count = int(left < kGroup - begin ? left : kGroup - begin);
      body(Block{row, col, begin, count, (a.col + col) / kGroup});
      col += count;
    }
  }
}

inline void draw(const Address& a, const Block& b, Buffer<uint16_t>& u) {
  const uint64_t row = a.rows ? uint64_t(a.rows[b.row]) : a.row + uint64_t(b.row);
  uniforms64(a.seed, a.draw, a.stream, uint32_t(row), b.group, u.v);
}

// The block's 64 values as floats: in place where they lie so in memory, else copied to `buffer`.
inline const float* read(ConstMatrix m, const Block& b, Buffer<float>& buffer) {
  const int64_t at = b.row * m.stride + b.col;
  if (m.dtype == DType::f32) {
    const float* p = static_cast<const float*>(m.data) + at;
    if (b.whole()) return p;
    std::memset(buffer.v, 0, sizeof buffer.v);
    std::memcpy(buffer.v + b.begin, p, b.count * sizeof(float));
    return buffer.v;
  }
  const uint16_t* p = static_cast<const uint16_t*>(m.data) + at;
  Buffer<uint16_t> copy;
  if (!b.whole()) {
    std::memset(copy.v, 0, sizeof copy.v);
    std::memcpy(copy.v + b.begin, p, b.count * sizeof(uint16_t));
    p = copy.v;
  }
  for (int i = 0; i < kGroup; i += kLanes) store(buffer.v + i, bf16_to_float(load<u16v>(p + i)));
  return buffer.v;
}

// Where a block's 64 results are computed before `write` puts them at their place.
inline float* target(Matrix m, const Block& b, Buffer<float>& buffer) {
  return m.dtype == DType::f32 && b.whole() ? static_cast<float*>(m.data) + b.row * m.stride + b.col : buffer.v;
}

inline void write(Matrix m, const Block& b, const float* values) {
  const int64_t at = b.row * m.stride + b.col;
  if (m.dtype == DType::f32) {
    float* p = static_cast<float*>(m.data) + at;
    if (p != values) std::memcpy(p, values + b.begin, b.count * sizeof(float));
    return;
  }
  Buffer<uint16_t> half;
  for (int i = 0; i < kGroup; i += kLanes) store(half.v + i, float_to_bf16(load<f32v>(values + i)));
  std::memcpy(static_cast<uint16_t*>(m.data) + at, half.v + b.begin, b.count * sizeof(uint16_t));
}

inline const uint16_t* read(Thresholds t, const Block& b, Buffer<uint16_t>& buffer) {
  const uint16_t* p = t.data + b.row * t.stride + b.col;
  if (b.whole()) return p;
  std::memset(buffer.v, 0, sizeof buffer.v);
  std::memcpy(buffer.v + b.begin, p, b.count * sizeof(uint16_t));
  return buffer.v;
}

// Remembers whether a NaN was seen: as an integer the largest magnitude is then above infinity's.
struct NanWatch {
  i32v largest = {};

  void see(f32v x) {
    const i32v magnitude = as_int(x) & 0x7FFFFFFF;
    largest = magnitude > largest ? magnitude : largest;
  }
  bool found() const { return lane_bits(largest > 0x7F800000) != 0; }
};

// The thresholds of a block's logits in float arithmetic, exact or off by one. With `slopes`, sigmoid'(logit) too.
// `unsure` gets a bit for each lane where two neighbours could not be told apart.
inline void approximate_thresholds(const float* logits, uint16_t* out, float* slopes, uint64_t& unsure, NanWatch& nan) {
  constexpr float kUnsure = 0.004f;  // > 16384 * the relative error of `low`
  unsure = 0;
  for (int i = 0; i < kGroup; i += kLanes) {
    const f32v x = load<f32v>(logits + i);
    const Sigmoid s = sigmoid(x);
    const f32v y = s.low * 32768.0f + 0.5f;
    i32v t = __builtin_convertvector(y, i32v);
    const f32v fraction = y - __builtin_convertvector(t, f32v);
    unsure |= uint64_t(lane_bits((fraction < kUnsure) | (fraction > 1.0f - kUnsure))) << i;
    t = t < 1 ? 1 : t;
    t = s.negative ? t : 32768 - t;
    store(out + i, __builtin_convertvector(t, u16v));
    if (slopes) store(slopes + i, s.slope);
    nan.see(x);
  }
}

// The reference's thresholds: where float arithmetic was unsure the table of exact boundaries decides.
inline void exact_thresholds(const float* logits, uint16_t* out, NanWatch& nan) {
  const float* bound = tables().bound;
  uint64_t unsure;
  approximate_thresholds(logits, out, nullptr, unsure, nan);
  for (; unsure; unsure &= unsure - 1) {
    const int i = __builtin_ctzll(unsure);
    int v = out[i];
    while (logits[i] < bound[v]) --v;
    while (logits[i] >= bound[v + 1]) ++v;
    out[i] = uint16_t(v);
  }
}

// The same within kQuickError of the exact thresholds, for a third of the work where the processor has table look-ups.
#if defined(__AVX512F__)
constexpr int kQuickError = 16;  // 3 inside [-8, 8], 11 more where a probability outside it is taken for that of its end

inline void quick_thresholds(const float* logits, uint16_t* out, NanWatch& nan) {
  const float* c = tables().curve;
  for (int i = 0; i < kGroup; i += kLanes) {
    const f32v x = load<f32v>(logits + i);
    nan.see(x);
    const __m512 s = _mm512_min_ps(_mm512_max_ps(__m512(x * 2.0f + 16.0f), _mm512_setzero_ps()), _mm512_set1_ps(31.999998f));
    const __m512i piece = _mm512_cvttps_epi32(s);
    const auto pick = [&](const float* t) {
      return f32v(_mm512_permutex2var_ps(_mm512_loadu_ps(t), piece, _mm512_loadu_ps(t + 16)));
    };
    const f32v r = f32v(s) - f32v(_mm512_cvtepi32_ps(piece)), y = (pick(c + 64) * r + pick(c + 32)) * r + pick(c);
    store(out + i, __builtin_convertvector(__builtin_convertvector(y, i32v), u16v));
  }
}
#else
constexpr int kQuickError = 1;

inline void quick_thresholds(const float* logits, uint16_t* out, NanWatch& nan) {
  uint64_t unsure;
  approximate_thresholds(logits, out, nullptr, unsure, nan);
}
#endif

// Thresholds that decide these uniforms as the reference's would. An error matters only where the uniform is near the
// threshold: there the boundary decides. With `slopes`, sigmoid'(logit) too.
inline void deciding_thresholds(const float* logits, const uint16_t* u, uint16_t* out, float* slopes, NanWatch& nan) {
  if (slopes) {
    uint64_t unsure;
    approximate_thresholds(logits, out, slopes, unsure, nan);
  } else {
    quick_thresholds(logits, out, nan);
  }
  const auto is_near = [](uint16_t v, uint16_t t) { return uint16_t((v & 0x7FFF) - t + kQuickError) <= 2 * kQuickError; };
  uint16_t near = 0;
  for (int i = 0; i < kGroup; ++i) near |= is_near(u[i], out[i]);
  if (near) {
    const float* bound = tables().bound;
    for (int i = 0; i < kGroup; ++i) {
      const int v = u[i] & 0x7FFF;
      if (is_near(u[i], out[i])) out[i] = uint16_t(logits[i] >= bound[v + 1] ? v + 1 : v);
    }
  }
}

inline i32v kept(const uint16_t* u, const uint16_t* t) {
  const u16v v = load<u16v>(u) & uint16_t(0x7FFF);
  return __builtin_convertvector(v < load<u16v>(t), i32v);
}

// A hard mask's lanes [i, i + kLanes) of a block, from its bits.
inline i32v lanes_of(uint64_t bits, int i) {
  u32v position;
  for (int lane = 0; lane < kLanes; ++lane) position[lane] = uint32_t(lane);
  const u32v word = uint32_t(bits >> i) - u32v{};
  return -reinterpret_cast<i32v>((word >> position) & 1u);
}

inline uint64_t& word_of(Bits bits, const Address& a, const Block& b) {
  return bits.data[b.row * bits.stride + int64_t(b.group - a.col / kGroup)];
}

// The binary concrete mask of Maddison et al. 2017: sigmoid((logit - logit(v)) / temperature).
inline Sigmoid concrete(const float* logits, const uint16_t* u, float inverse_temperature, const float* table) {
  alignas(64) float l[kLanes];
  for (int i = 0; i < kLanes; ++i) l[i] = table[u[i] & 0x7FFF];
  return sigmoid((load<f32v>(logits) - load<f32v>(l)) * inverse_temperature);
}

// A soft mask and its slope dz/dlogit; the hard concrete one is stretched to (-0.1, 1.1) and clamped (Louizos et al. 2018).
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

void keep_mask(Address a, Shape shape, Thresholds thresholds, uint8_t* mask, int64_t stride) {
  for_each_block(a, shape, [&](const Block& b) {
    Buffer<uint16_t> u, copy;
    draw(a, b, u);
    const uint16_t* t = read(thresholds, b, copy);
    uint8_t keep[kGroup];
    for (int i = 0; i < kGroup; ++i) keep[i] = (u.v[i] & 0x7FFF) < t[i];
    std::memcpy(mask + b.row * stride + b.col, keep + b.begin, b.count);
  });
}

bool thresholds(Shape shape, ConstMatrix logits, uint16_t* out, int64_t stride) {
  NanWatch nan;
  for_each_block(Address{}, shape, [&](const Block& b) {
    Buffer<float> copy;
    Buffer<uint16_t> t;
    exact_thresholds(read(logits, b, copy), t.v, nan);
    std::memcpy(out + b.row * stride + b.col, t.v + b.begin, b.count * sizeof(uint16_t));
  });
  return nan.found();
}

constexpr bool is_hard(Estimator e) {
  return e == Estimator::straight_through || e == Estimator::straight_through_concrete;
}

template <Estimator E>
bool masked_weight_as(Address a, Shape shape, float inverse_temperature, ConstMatrix weight, ConstMatrix logits,
                      Thresholds thresholds, Matrix out, Bits keep) {
  const Tables& table = tables();
  NanWatch nan;
  for_each_block(a, shape, [&](const Block& b) {
    Buffer<float> wbuf, lbuf, obuf;
    Buffer<uint16_t> u, tbuf;
    const float* w = read(weight, b, wbuf);
    float* o = target(out, b, obuf);
    const auto put = [direct = o != obuf.v](float* p, f32v v) { direct ? stream(p, v) : store(p, v); };
    if constexpr (E != Estimator::expected) draw(a, b, u);
    if constexpr (is_hard(E)) {
      const uint16_t* t = tbuf.v;
      if (thresholds.data) {
        t = read(thresholds, b, tbuf);
      } else {
        deciding_thresholds(read(logits, b, lbuf), u.v, tbuf.v, nullptr, nan);
      }
      uint64_t bits = 0;
      for (int i = 0; i < kGroup; i += kLanes) {
        const i32v lanes = kept(u.v + i, t + i);
        put(o + i, zero_unless(lanes, load<f32v>(w + i)));
        bits |= uint64_t(lane_bits(lanes)) << i;
      }
      if (keep.data) word_of(keep, a, b) = bits;
    } else {
      const float* l = read(logits, b, lbuf);
      for (int i = 0; i < kGroup; i += kLanes) {
        nan.see(load<f32v>(l + i));
        put(o + i, soft_mask<E>(l + i, u.v + i, inverse_temperature, table.logit).value * load<f32v>(w + i));
      }
    }
    write(out, b, o);
  });
  stream_fence();
  return nan.found();
}

// Adds to what is there, or writes over it; `fresh`: nobody reads that memory soon.
inline void write_sum(Matrix m, const Block& b, Buffer<float>& values, bool accumulate, bool fresh) {
  if (fresh && m.dtype == DType::f32 && b.whole()) {
    float* p = static_cast<float*>(m.data) + b.row * m.stride + b.col;
    for (int i = 0; i < kGroup; i += kLanes) stream(p + i, load<f32v>(values.v + i));
    return;
  }
  if (accumulate) {
    Buffer<float> copy;
    const float* old = read(ConstMatrix{m.data, m.stride, m.dtype}, b, copy);
    for (int i = 0; i < kGroup; i += kLanes) store(values.v + i, load<f32v>(values.v + i) + load<f32v>(old + i));
  }
  write(m, b, values.v);
}

template <Estimator E>
void weight_grad_as(Address a, Shape shape, float inverse_temperature, ConstMatrix grad, ConstMatrix weight,
                    ConstMatrix logits, Thresholds thresholds, Bits keep, Divergence kl, Matrix dweight, Matrix dlogits,
                    bool accumulate) {
  constexpr bool relaxed = E != Estimator::straight_through && E != Estimator::expected;
  const Tables& table = tables();
  NanWatch nan;  // forward has refused them already
  for_each_block(a, shape, [&](const Block& b) {
    Buffer<float> gbuf, wbuf, lbuf, pbuf, slopes, dw, dl;
    Buffer<uint16_t> u, tbuf;
    const float* g = read(grad, b, gbuf);
    const float* l = read(logits, b, lbuf);
    const bool redraw = relaxed || (is_hard(E) && dweight.data && !keep.data);
    if (redraw) draw(a, b, u);
    bool have_slopes = false;
    if (is_hard(E) && dweight.data) {
      uint64_t bits = 0;
      if (keep.data) {
        bits = word_of(keep, a, b);
      } else {
        const uint16_t* t = tbuf.v;
        if (thresholds.data) {
          t = read(thresholds, b, tbuf);
        } else {
          have_slopes = E == Estimator::straight_through;
          deciding_thresholds(l, u.v, tbuf.v, have_slopes ? slopes.v : nullptr, nan);
        }
        for (int i = 0; i < kGroup; i += kLanes) bits |= uint64_t(lane_bits(kept(u.v + i, t + i))) << i;
      }
      for (int i = 0; i < kGroup; i += kLanes) store(dw.v + i, zero_unless(lanes_of(bits, i), load<f32v>(g + i)));
    }
    if ((dlogits.data && !have_slopes) || !is_hard(E)) {
      for (int i = 0; i < kGroup; i += kLanes) {
        const Sigmoid s = relaxed ? soft_mask<E>(l + i, u.v + i, inverse_temperature, table.logit) : sigmoid(load<f32v>(l + i));
        store(slopes.v + i, s.slope);
        if constexpr (!is_hard(E)) store(dw.v + i, load<f32v>(g + i) * s.value);
      }
    }
    if (dlogits.data) {
      const float* w = read(weight, b, wbuf);
      for (int i = 0; i < kGroup; i += kLanes) {
        store(dl.v + i, load<f32v>(g + i) * load<f32v>(w + i) * load<f32v>(slopes.v + i));
      }
      if (kl.prior.data) {
        const float* p = read(kl.prior, b, pbuf);
        for (int i = 0; i < kGroup; i += kLanes) {
          const f32v x = load<f32v>(l + i), s = relaxed ? sigmoid(x).slope : load<f32v>(slopes.v + i);
          const i32v finite = (x < 88.0f) & (x > -88.0f);  // beyond, the slope is 0 in float32
          store(dl.v + i, load<f32v>(dl.v + i) + zero_unless(finite, (x - load<f32v>(p + i)) * (s * kl.scale)));
        }
      }
    }
    // Written last: either may lie where the gradient was read.
    if (dweight.data) write_sum(dweight, b, dw, accumulate, !accumulate && dweight.data != grad.data);
    if (dlogits.data) write_sum(dlogits, b, dl, accumulate, !accumulate && dlogits.data != grad.data);
  });
  stream_fence();
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

bool masked_weight(Address a, Shape shape, Relaxation r, ConstMatrix weight, ConstMatrix logits, Thresholds t, Matrix out,
                   Bits keep) {
  return with_estimator(r.estimator, [&]<Estimator E>() {
    return masked_weight_as<E>(a, shape, 1.0f / r.temperature, weight, logits, t, out, keep);
  });
}

void weight_grad(Address a, Shape shape, Relaxation r, ConstMatrix grad, ConstMatrix weight, ConstMatrix logits,
                 Thresholds t, Bits keep, Divergence kl, Matrix dweight, Matrix dlogits, bool accumulate) {
  with_estimator(r.estimator, [&]<Estimator E>() {
    weight_grad_as<E>(a, shape, 1.0f / r.temperature, grad, weight, logits, t, keep, kl, dweight, dlogits, accumulate);
  });
}

}  // namespace
}  // namespace stochprune

#include "gaussian.h"
#include "kl_impl.h"
#include "moments.h"
#include "nm.h"

namespace stochprune {
namespace {

constexpr Kernels table_of(const char* name) {
  return {name, keep_mask, thresholds, masked_weight, weight_grad, gaussian_weight, gaussian_grad,
          bernoulli_kl, gaussian_kl, bernoulli_kl_grad, gaussian_kl_grad,
          nm_masked_weight, nm_weight_grad, moments, moments_grad};
}

}  // namespace
}  // namespace stochprune
