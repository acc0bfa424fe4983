// Eight neighbours of a row at a time, in any dtype, by 16-byte accesses where the addresses allow.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../common/philox.h"
#include "../common/types.h"

namespace stochprune::cuda {

constexpr int kColumns = 8;

struct Span {  // of the eight: those that lie in the matrix
  int first, last;
  STOCHPRUNE_HD bool whole() const { return first == 0 && last == kColumns; }
};

// A matrix whose rows start at multiples of 16 bytes may be read and written eight columns at a time.
struct Cells {
  void* data;  // null: not wanted
  int64_t stride;
  DType dtype;
  bool wide;
};

STOCHPRUNE_HD float to_float(float x) { return x; }
STOCHPRUNE_HD float to_float(__half x) { return __half2float(x); }
STOCHPRUNE_HD float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
STOCHPRUNE_HD void from_float(float x, float& y) { y = x; }
STOCHPRUNE_HD void from_float(float x, __half& y) { y = __float2half_rn(x); }
STOCHPRUNE_HD void from_float(float x, __nv_bfloat16& y) { y = __float2bfloat16_rn(x); }

template <class T>
struct alignas(sizeof(T) * kColumns < 16 ? sizeof(T) * kColumns : 16) Eight {
  T at[kColumns];
};

template <class T>
STOCHPRUNE_HD Eight<T> read(const T* p, Span span, bool wide) {
  if (wide && span.whole()) return *reinterpret_cast<const Eight<T>*>(p);
  Eight<T> v = {};
#pragma unroll
  for (int i = 0; i < kColumns; ++i)
    if (i >= span.first && i < span.last) v.at[i] = p[i];
  return v;
}

template <class T>
STOCHPRUNE_HD void write(T* p, const Eight<T>& v, Span span, bool wide) {
  if (wide && span.whole()) {
    *reinterpret_cast<Eight<T>*>(p) = v;
    return;
  }
#pragma unroll
  for (int i = 0; i < kColumns; ++i)
    if (i >= span.first && i < span.last) p[i] = v.at[i];
}

template <class T>
STOCHPRUNE_HD void load_as(const void* data, int64_t at, Span span, bool wide, float* v) {
  const Eight<T> raw = read(static_cast<const T*>(data) + at, span, wide);
#pragma unroll
  for (int i = 0; i < kColumns; ++i) v[i] = to_float(raw.at[i]);
}

template <class T>
STOCHPRUNE_HD void store_as(void* data, int64_t at, Span span, bool wide, const float* v) {
  Eight<T> raw;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) from_float(v[i], raw.at[i]);
  write(static_cast<T*>(data) + at, raw, span, wide);
}

// The dtype is the same for all threads: a switch that does not diverge, in place of a kernel for each combination.
STOCHPRUNE_HD void load(const Cells& m, int64_t row, int64_t col, Span span, float* v) {
  const int64_t at = row * m.stride + col;
  if (m.dtype == DType::f32) load_as<float>(m.data, at, span, m.wide, v);
  if (m.dtype == DType::bf16) load_as<__nv_bfloat16>(m.data, at, span, m.wide, v);
  if (m.dtype == DType::f16) load_as<__half>(m.data, at, span, m.wide, v);
}

STOCHPRUNE_HD void store(const Cells& m, int64_t row, int64_t col, Span span, const float* v) {
  const int64_t at = row * m.stride + col;
  if (m.dtype == DType::f32) store_as<float>(m.data, at, span, m.wide, v);
  if (m.dtype == DType::bf16) store_as<__nv_bfloat16>(m.data, at, span, m.wide, v);
  if (m.dtype == DType::f16) store_as<__half>(m.data, at, span, m.wide, v);
}

}  // namespace stochprune::cuda
