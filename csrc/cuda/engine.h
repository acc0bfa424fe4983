// The functions that launch the CUDA kernels. Seed and draws are read on the device; no function synchronises.
#pragma once
#include "../common/types.h"

namespace stochprune::cuda {

struct Launch {
  int device;
  uintptr_t stream;  // cudaStream_t
};

struct KLTerm {        // the KL divergence between the masks and a prior's masks, as a part of the loss
  ConstMatrix prior;   // logits; data is null if the loss has no such part
  const double* grad;  // the derivative of the loss with respect to the divergence
};

struct Gradients {
  Matrix dweight, dlogits, masked_weight;
  bool add;  // add to the present values instead of overwriting them
};

void keep_mask(Launch, const Masked&, uint8_t* keep);
void thresholds(Launch, Shape, ConstMatrix logits, uint16_t* out);
// out: the masked weights of all draws, one matrix below the other.
void masked_weight(Launch, const Masked&, Matrix out);
// Writes the gradients under the first draw, plus those of the divergence, and the masked weight.
void weight_grad(Launch, const Masked&, ConstMatrix grad, KLTerm, Gradients);

}  // namespace stochprune::cuda
