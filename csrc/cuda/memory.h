// Loads and stores of eight neighbouring elements of a row, in any dtype, with 16-byte accesses where they are aligned.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <type_traits>

#include "../common/types.h"
#include "device.h"

namespace stochprune::cuda {

constexpr int kColumns = 8;

struct Span {  // which of the eight elements lie in the matrix
  int first, last;
  STOCHPRUNE_DEVICE bool whole() const { return first == 0 && last == kColumns; }
};

struct Place {  // the position of eight weights
  int64_t row;     // row of the result
  int64_t source;  // row of the weight
  int64_t col;
  Span span;
};

// A matrix whose rows start at multiples of 16 bytes may be read and written eight columns at a time.
struct Cells {
  void* data;  // null if there is no such matrix
  int64_t stride;
  DType dtype;
  bool wide;
};

STOCHPRUNE_DEVICE float to_float(float x) { return x; }
STOCHPRUNE_DEVICE float to_float(__half x) { return __half2float(x); }
STOCHPRUNE_DEVICE float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
STOCHPRUNE_DEVICE void from_float(float x, float& y) { y = x; }
STOCHPRUNE_DEVICE void from_float(float x, __half& y) { y = __float2half_rn(x); }
STOCHPRUNE_DEVICE void from_float(float x, __nv_bfloat16& y) { y = __float2bfloat16_rn(x); }

// The compiler would split an assignment into stores of the single elements.
template <class Wide>
STOCHPRUNE_DEVICE void store_words(Wide* p, Wide words) {
#ifdef __CUDA_ARCH__
  __stwb(p, words);
#else
  *p = words;
#endif
}

template <class T>
struct Eight {
  using Wide = std::conditional_t<sizeof(T) == 1, uint2, uint4>;
  static constexpr int kWide = sizeof(T) * kColumns / sizeof(Wide);
  T at[kColumns];
};

template <class T>
STOCHPRUNE_DEVICE Eight<T> read(const T* p, Span span, bool wide) {
  Eight<T> v = {};
  if (wide && span.whole()) {
    typename Eight<T>::Wide words[Eight<T>::kWide];
    for (int i = 0; i < Eight<T>::kWide; ++i) words[i] = reinterpret_cast<const typename Eight<T>::Wide*>(p)[i];
    memcpy(&v, words, sizeof v);
    return v;
  }
  for (int i = 0; i < kColumns; ++i)
    if (i >= span.first && i < span.last) v.at[i] = p[i];
  return v;
}

template <class T>
STOCHPRUNE_DEVICE void write(T* p, const Eight<T>& v, Span span, bool wide) {
  if (wide && span.whole()) {
    typename Eight<T>::Wide words[Eight<T>::kWide];
    memcpy(words, &v, sizeof v);
    for (int i = 0; i < Eight<T>::kWide; ++i) store_words(reinterpret_cast<typename Eight<T>::Wide*>(p) + i, words[i]);
    return;
  }
  for (int i = 0; i < kColumns; ++i)
    if (i >= span.first && i < span.last) p[i] = v.at[i];
}

template <class T>
STOCHPRUNE_DEVICE void load_as(const void* data, int64_t at, Span span, bool wide, float* v) {
  const Eight<T> raw = read(static_cast<const T*>(data) + at, span, wide);
  for (int i = 0; i < kColumns; ++i) v[i] = to_float(raw.at[i]);
}

template <class T>
STOCHPRUNE_DEVICE void store_as(void* data, int64_t at, Span span, bool wide, const float* v) {
  Eight<T> raw;
  for (int i = 0; i < kColumns; ++i) from_float(v[i], raw.at[i]);
  write(static_cast<T*>(data) + at, raw, span, wide);
}

// The dtype is the same for all threads, so these branches do not diverge. Without them each combination of dtypes
// would need its own kernel.
STOCHPRUNE_DEVICE void load(const Cells& m, int64_t row, int64_t col, Span span, float* v) {
  const int64_t at = row * m.stride + col;
  if (m.dtype == DType::f32) load_as<float>(m.data, at, span, m.wide, v);
  if (m.dtype == DType::bf16) load_as<__nv_bfloat16>(m.data, at, span, m.wide, v);
  if (m.dtype == DType::f16) load_as<__half>(m.data, at, span, m.wide, v);
}

STOCHPRUNE_DEVICE void store(const Cells& m, int64_t row, int64_t col, Span span, const float* v) {
  const int64_t at = row * m.stride + col;
  if (m.dtype == DType::f32) store_as<float>(m.data, at, span, m.wide, v);
  if (m.dtype == DType::bf16) store_as<__nv_bfloat16>(m.data, at, span, m.wide, v);
  if (m.dtype == DType::f16) store_as<__half>(m.data, at, span, m.wide, v);
}

}  // namespace stochprune::cuda
