// The mask contract's bits, for host and device compilers. See stochprune/rng.py for the text.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define STOCHPRUNE_HD __host__ __device__ __forceinline__
#else
#define STOCHPRUNE_HD static inline
#endif

namespace stochprune {

constexpr uint32_t kMul0 = 0xD2511F53u, kMul1 = 0xCD9E8D57u;
constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
constexpr int kRounds = 7;
constexpr int kGroup = 64;  // columns served by eight Philox calls

struct Words {
  uint32_t w[4];
};

STOCHPRUNE_HD Words philox4x32(Words c, uint32_t k0, uint32_t k1, int rounds = kRounds) {
  for (int i = 0; i < rounds; ++i) {
    const uint64_t p0 = uint64_t(kMul0) * c.w[0];
    const uint64_t p1 = uint64_t(kMul1) * c.w[2];
    c = {{uint32_t(p1 >> 32) ^ c.w[1] ^ k0, uint32_t(p1), uint32_t(p0 >> 32) ^ c.w[3] ^ k1, uint32_t(p0)}};
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  return c;
}

// Word s of call j of a group holds the uniforms of columns 16 s + 2 j (low half) and 16 s + 2 j + 1.
STOCHPRUNE_HD Words group_call(uint64_t seed, uint32_t draw, uint32_t stream, uint32_t row, uint64_t group, uint32_t call) {
  const Words ctr = {{uint32_t(group << 3) | call, row, draw, stream}};
  return philox4x32(ctr, uint32_t(seed), uint32_t(seed >> 32));
}

STOCHPRUNE_HD uint32_t uniform16(uint64_t seed, uint32_t draw, uint32_t stream, uint32_t row, uint64_t col) {
  const Words w = group_call(seed, draw, stream, row, col >> 6, uint32_t(col >> 1) & 7u);
  return (w.w[(col >> 4) & 3] >> (16 * (col & 1))) & 0xFFFFu;
}

// True if a weight with keep threshold t (probability t / 32768) is kept.
STOCHPRUNE_HD bool keep(uint32_t u, uint32_t t) { return (u & 0x7FFFu) < t; }

}  // namespace stochprune
