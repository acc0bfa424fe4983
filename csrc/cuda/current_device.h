// Sets the thread's current device for a launch, and restores it after.
#pragma once
#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace stochprune::cuda {

inline void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

// torch allocates and launches on the current device, so our calls must restore it.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) : now_(device) {
    check(cudaGetDevice(&before_));
    if (now_ != before_) check(cudaSetDevice(now_));
  }
  ~CurrentDevice() {
    if (now_ != before_) cudaSetDevice(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int now_, before_ = 0;
};

}  // namespace stochprune::cuda
