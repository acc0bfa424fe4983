// Stochastic rounding of float32 to bfloat16 by the contract's bits; part of kernels_impl.h.
#pragma once
#include "blocks.h"

namespace stochprune {
namespace {

void stochastic_round(const Masked& m, uint16_t* out) {
  const BlockUniforms uniforms(m);
  for_each_block(m.col, m.shape, [&](const Block& b) {
    Buffer<float> copy;
    Buffer<uint16_t> u, rounded;
    uniforms(b, u.v);
    const float* values = read(m.weight, b, copy);
    for (int i = 0; i < kGroup; i += kLanes)
      store(rounded.v + i, float_to_bf16(load<f32v>(values + i), load<u16v>(u.v + i)));
    std::memcpy(out + b.row * m.shape.cols + b.col, rounded.v + b.begin, b.count * sizeof(uint16_t));
  });
}

}  // namespace
}  // namespace stochprune
