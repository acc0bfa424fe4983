#include "kernels_impl.h"

namespace stochprune {

const Kernels* avx2_kernels() {
#if defined(__AVX2__)
  static constexpr Kernels kernels = table_of("avx2");
  return &kernels;
#else
  return nullptr;
#endif
}

}  // namespace stochprune
