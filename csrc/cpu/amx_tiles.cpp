#include "amx.h"

#if defined(__AMX_BF16__)
#include "amx_impl.h"
#endif

namespace stochprune {

const TileKernels* amx_tiles() {
#if defined(__AMX_BF16__)
  static constexpr TileKernels kernels = tile_kernels("amx");
  return &kernels;
#else
  return nullptr;
#endif
}

}  // namespace stochprune
