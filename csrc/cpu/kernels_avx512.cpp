#include "kernels_impl.h"

namespace stochprune {

const Kernels* avx512_kernels() {
#if defined(__AVX512F__) && defined(__AVX512BW__)
  static constexpr Kernels kernels = table_of("avx512");
  return &kernels;
#else
  return nullptr;
#endif
}

}  // namespace stochprune
