// The current device of the thread, taken for a launch and given back.
#pragma once
#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace stochprune::cuda {

inline void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

// torch's allocations and launches follow the current device, so a call of ours must leave it as it was.
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
