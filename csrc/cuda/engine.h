// The CUDA kernels as the bindings call them. Seed and draws are read on the device; no call waits for it.
#pragma once
#include "../common/types.h"

namespace stochprune::cuda {

struct Launch {
  int device;
  uintptr_t stream;  // cudaStream_t
};

struct Address {  // of a matrix's first weight, under one or more draws
  const int64_t *seed, *draws;
  uint32_t stream;
  uint64_t row, col;
  const int64_t* rows = nullptr;  // the rows of the weight that the other matrices speak of; null: all
};

void keep_mask(Launch, Address, Shape, const uint16_t* threshold, int64_t stride, uint8_t* mask);
void thresholds(Launch, Shape, ConstMatrix logits, uint16_t* out);
// out: the masked weights of `draws` draws, one below the other.
void masked_weight(Launch, Address, int draws, Shape, Relaxation, ConstMatrix weight, ConstMatrix logits, Matrix out);
// With the logits of a prior the gradient of the masks' divergence from it, times *kl_grad, is added to dlogits.
void weight_grad(Launch, Address, Shape, Relaxation, ConstMatrix grad, ConstMatrix weight, ConstMatrix logits, ConstMatrix prior,
                 const double* kl_grad, Matrix dweight, Matrix dlogits, bool add);

}  // namespace stochprune::cuda
