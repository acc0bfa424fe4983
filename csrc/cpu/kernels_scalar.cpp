#include "kernels_impl.h"

namespace stochprune {

const Kernels* scalar_kernels() {
  static constexpr Kernels kernels = table_of("scalar");
  return &kernels;
}

}  // namespace stochprune
