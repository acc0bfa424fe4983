// The CUDA kernels as the bindings call them. Seed and draws are read on the device; no call waits for it.
#pragma once
#include "../common/types.h"

namespace stochprune::cuda {

struct Launch {
  int device;
  uintptr_t stream;  // cudaStream_t
};

struct KLTerm {        // the divergence of the masks from those of a prior, as a part of the loss
  ConstMatrix prior;   // logits; no data: no such part
  const double* grad;  // the loss's derivative for the divergence
};

struct Gradients {
  Matrix dweight, dlogits;
  bool add;  // to what they hold
};

void keep_mask(Launch, const Masked&, uint8_t* keep);
void thresholds(Launch, Shape, ConstMatrix logits, uint16_t* out);
// out: the masked weights of the draws, one below the other.
void masked_weight(Launch, const Masked&, Matrix out);
// The gradients under the first draw, and of the divergence.
void weight_grad(Launch, const Masked&, ConstMatrix grad, KLTerm, Gradients);

}  // namespace stochprune::cuda
