// The runtime's answers without a GPU, and what CurrentDevice leaves behind; prints one line a case.
#include "cuda/current_device.h"

#include <cstdio>

static int current = 1, calls = 0;

extern "C" {
cudaError_t cudaGetDevice(int* device) { return *device = current, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  ++calls;
  return device > 3 ? cudaErrorInvalidDevice : (current = device, cudaSuccess);
}
const char* cudaGetErrorString(cudaError_t) { return "invalid device"; }
}

int main() {
  using stochprune::cuda::CurrentDevice;
  {
    const CurrentDevice other(2);
    std::printf("inside %d\n", current);
  }
  std::printf("after %d\n", current);
  try {
    const CurrentDevice other(3);
    throw 0;
  } catch (int) {
    std::printf("thrown %d\n", current);
  }
  try {
    const CurrentDevice missing(4);
  } catch (const std::runtime_error& error) {
    std::printf("missing %d %s\n", current, error.what());
  }
  calls = 0;
  { const CurrentDevice same(1); }
  std::printf("same %d calls\n", calls);
}
