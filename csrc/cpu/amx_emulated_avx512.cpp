#include "amx_impl.h"

namespace stochprune {

const TileKernels* emulated_tiles_avx512() {
#if defined(__AVX512BW__)
  static constexpr TileKernels kernels = tile_kernels("amx-emulated");
  return &kernels;
#else
  return nullptr;
#endif
}

}  // namespace stochprune
