// The CPU kernels for the bindings: they use the best instruction set of this processor and split rows among threads.
#pragma once
#include <string>
#include <vector>

#include "amx.h"
#include "kernels.h"

namespace stochprune {

// Names of the instruction sets that this binary contains and this processor supports, best first. "amx" is AVX-512 with
// products on tiles.
std::vector<std::string> instruction_sets();
// Chooses one of them for all later calls, or "amx-emulated": the best one, with tiles in software, for tests. Throws
// std::invalid_argument for another name.
void use_instruction_set(const std::string& name);
std::string instruction_set();
const Kernels& kernels();
const TileKernels* tile_kernels();  // null: the instruction set has no tiles

struct Rows {
  int64_t first, count;
};

// The matrices of several draws are stacked by rows, and gradients are summed over draws. With Rows, `out`, `grad` and `kept`
// contain only these rows; the gradients and the prior contain all rows of the weight.
void keep_mask(const Masked&, uint8_t* keep, int threads);
void stochastic_round(const Masked&, uint16_t* out, int threads);
bool thresholds(Shape, ConstMatrix logits, uint16_t* out, int threads);
bool masked_weight(const Masked&, Rows, Matrix out, Bits kept, int threads);
void weight_grad(const Masked&, Rows, ConstMatrix grad, Bits kept, Divergence, Gradients, int threads);
void gaussian_weight(const Masked&, ConstMatrix mu, ConstMatrix rho, Matrix out, int threads);
void gaussian_grad(const Masked&, ConstMatrix grad, ConstMatrix rho, Matrix drho, int threads);
bool nm_masked_weight(const Masked&, Pattern, Matrix out, int threads);
void nm_weight_grad(const Masked&, Pattern, ConstMatrix grad, Gradients, int threads);
bool moments(Shape, ConstMatrix weight, ConstMatrix logits, ConstMatrix rho, Matrix mean, Matrix variance, int threads);
void moments_grad(Shape, ConstMatrix dmean, ConstMatrix dvariance, ConstMatrix weight, ConstMatrix logits, ConstMatrix rho,
                  Matrix dweight, Matrix dlogits, Matrix drho, int threads);

// y [batch, rows] = x [batch, cols] W^T + bias, dense matrices in float32. Sums are the same on any number of threads and for
// any batch.
void sparse_linear(Shape, const SparseRows&, int64_t batch, const float* x, const float* bias, float* y, int threads);

struct Activations {  // [draws, examples, features], bfloat16 or float32
  const void* data;
  int64_t examples;
  DType dtype;
};

// Masked linear layers on tiles: y [draws, M, N] = x [draws, M, K] (z * weight)^T + bias, and the gradients of x, weight and
// logits from grad [draws, M, N]; dx and the matrices of Gradients may be null. grad, y and dx have the dtype of x. If Found
// says that a product of float32 is not finite, the results are not those of float32. Sums are the same on any number of
// threads. `memory` holds tile_bytes() bytes, on a boundary of 64.
int64_t tile_bytes(const Masked&, int64_t examples, DType, int threads);
Found tile_forward(const Masked&, Activations x, ConstMatrix bias, void* y, char* memory, int threads);
Found tile_backward(const Masked&, Activations x, Activations grad, void* dx, Divergence, Gradients, char* memory, int threads);

// For `count` weights in one row. Sums do not depend on the number of threads.
double bernoulli_kl(int64_t count, ConstMatrix logits, ConstMatrix prior, int threads);
double gaussian_kl(int64_t count, Gaussians, int threads);
void bernoulli_kl_grad(int64_t count, double scale, ConstMatrix logits, ConstMatrix prior, Matrix dlogits, Matrix dprior,
                       int threads);
void gaussian_kl_grad(int64_t count, double scale, Gaussians, GaussianGrads, int threads);

// Requests huge pages for a large buffer before it is written for the first time.
void advise_huge_pages(void* data, size_t bytes);

}  // namespace stochprune
