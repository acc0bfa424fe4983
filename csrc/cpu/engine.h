// The CPU kernels as the bindings call them: the best instruction set of this processor, rows shared among threads.
#pragma once
#include <string>
#include <vector>

#include "kernels.h"

namespace stochprune {

// Names of the instruction sets that this binary holds and this processor runs, best first.
std::vector<std::string> instruction_sets();
// Chooses one of them for all later calls. Throws std::invalid_argument for another name.
void use_instruction_set(const std::string& name);
std::string instruction_set();

void keep_mask(Address, Shape, Thresholds, uint8_t* mask, int64_t stride, int threads);
bool thresholds(Shape, ConstMatrix logits, uint16_t* out, int64_t stride, int threads);
bool masked_weight(Address, Shape, Relaxation, ConstMatrix weight, ConstMatrix logits, Thresholds, Matrix out, Bits kept,
                   int threads);
void weight_grad(Address, Shape, Relaxation, ConstMatrix grad, ConstMatrix weight, ConstMatrix logits, Thresholds, Bits kept,
                 Divergence, Matrix dweight, Matrix dlogits, bool accumulate, int threads);
void gaussian_weight(Address, Shape, ConstMatrix mu, ConstMatrix rho, Matrix out, int threads);
void gaussian_grad(Address, Shape, ConstMatrix grad, ConstMatrix rho, Matrix drho, bool accumulate, int threads);
bool nm_masked_weight(Address, Shape, int n, int m, ConstMatrix weight, ConstMatrix logits, Matrix out, int threads);
void nm_weight_grad(Address, Shape, int n, int m, ConstMatrix grad, ConstMatrix weight, ConstMatrix logits, Matrix dweight,
                    Matrix dlogits, bool accumulate, int threads);
bool moments(Shape, ConstMatrix weight, ConstMatrix logits, ConstMatrix rho, Matrix mean, Matrix variance, int threads);
void moments_grad(Shape, ConstMatrix dmean, ConstMatrix dvariance, ConstMatrix weight, ConstMatrix logits, ConstMatrix rho,
                  Matrix dweight, Matrix dlogits, Matrix drho, int threads);

// Of `count` weights in one row. Sums are the same on any number of threads.
double bernoulli_kl(int64_t count, ConstMatrix logits, ConstMatrix prior, int threads);
double gaussian_kl(int64_t count, Gaussians, int threads);
void bernoulli_kl_grad(int64_t count, double scale, ConstMatrix logits, ConstMatrix prior, Matrix dlogits, Matrix dprior,
                       int threads);
void gaussian_kl_grad(int64_t count, double scale, Gaussians, GaussianGrads, int threads);

// Asks for huge pages under a large buffer that is about to be written for the first time.
void advise_huge_pages(void* data, size_t bytes);

}  // namespace stochprune
