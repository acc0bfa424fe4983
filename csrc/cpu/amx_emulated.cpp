#include "amx_impl.h"

namespace stochprune {

const TileKernels* emulated_tiles() {
  static constexpr TileKernels kernels = tile_kernels("amx-emulated");
  return &kernels;
}

}  // namespace stochprune
