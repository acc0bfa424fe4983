// Eight tile registers: Intel's, and a portable emulation that computes exactly the same; part of amx_impl.h.
#pragma once
#include <math.h>

#include "amx.h"
#include "simd.h"

namespace stochprune {
namespace {

#if defined(__AMX_BF16__)

// The instructions are written as text, because the compiler's functions do not say that they read memory.
class TileUnit {
 public:
  TileUnit() {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes_of_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    static_assert(sizeof config == 64);
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~TileUnit() { asm volatile("tilerelease"); }
  TileUnit(const TileUnit&) = delete;

  template <int T>
  void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
  }
  // Rows of 64 bytes, `stride` bytes apart.
  template <int T>
  void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
  }
  // C [16, 16] += A [16, 32] B [32, 16], with B's rows in pairs.
  template <int C, int A, int B>
  void dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};

#else

// TDPBF16PS as Intel's manual defines it: of each result, two sums of products by fused multiply-add, one of the even and one
// of the odd elements, are added to each other, then to the result. Denormal numbers are zero, as inputs and as results.
class TileUnit {
  uint32_t tile_[8][kTile][kTile] = {};

  static float flush(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x; }
  static float as_number(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  }
  static float bf16(uint32_t half) { return flush(as_number(half << 16)); }

 public:
  template <int T>
  void zero() {
    std::memset(tile_[T], 0, sizeof tile_[T]);
  }
  template <int T>
  void load(const void* from, int64_t stride) {
    for (int r = 0; r < kTile; ++r) std::memcpy(tile_[T][r], static_cast<const char*>(from) + r * stride, 64);
  }
  template <int T>
  void store(void* to, int64_t stride) {
    for (int r = 0; r < kTile; ++r) std::memcpy(static_cast<char*>(to) + r * stride, tile_[T][r], 64);
  }
  // In double precision the products are exact, and a sum that is rounded to float equals the fused one: if its parts differ so
  // much that double rounds it, it is not near the middle of two floats.
  template <int C, int A, int B>
  void dot() {
    for (int m = 0; m < kTile; ++m) {
      float even[kTile] = {}, odd[kTile] = {};
      for (int k = 0; k < kTile; ++k) {
        const uint32_t pair = tile_[A][m][k];
        const double a = bf16(pair & 0xFFFF), b = bf16(pair >> 16);
        for (int n = 0; n < kTile; ++n) {
          even[n] = flush(float(a * bf16(tile_[B][k][n] & 0xFFFF) + even[n]));
          odd[n] = flush(float(b * bf16(tile_[B][k][n] >> 16) + odd[n]));
        }
      }
      for (int n = 0; n < kTile; ++n) {
        const float sum = flush(flush(as_number(tile_[C][m][n])) + flush(even[n] + odd[n]));
        std::memcpy(&tile_[C][m][n], &sum, sizeof sum);
      }
    }
  }
};

#endif

// The four sums of 2 x 2 tiles, in the tiles 0 to 3 and one after the other in memory.
inline void zero_sums(TileUnit& t) {
  t.zero<0>();
  t.zero<1>();
  t.zero<2>();
  t.zero<3>();
}

inline void load_sums(TileUnit& t, const float* from) {
  t.load<0>(from, 64);
  t.load<1>(from + kTileWords, 64);
  t.load<2>(from + 2 * kTileWords, 64);
  t.load<3>(from + 3 * kTileWords, 64);
}

inline void store_sums(TileUnit& t, float* to) {
  t.store<0>(to, 64);
  t.store<1>(to + kTileWords, 64);
  t.store<2>(to + 2 * kTileWords, 64);
  t.store<3>(to + 3 * kTileWords, 64);
}

// Two tiles of an operand, and the low parts of both.
struct TwoTiles {
  const void* first;
  int64_t row, second, low;  // bytes from a row to the next one, from a tile to the other one, and from a part to the other one

  const void* tile(int64_t which, int64_t part) const { return static_cast<const char*>(first) + which * second + part * low; }
};

// Adds the products of 2 x 2 tiles to their sums; `a` goes through the tiles 4 and 5, `b` through 6 and 7. With kSwapped, `b` is
// the left operand. Calls between() after each four products.
template <int kParts, bool kSwapped, class F>
inline void add_products(TileUnit& t, const TwoTiles& a, const TwoTiles& b, F&& between) {
  const auto products = [&]() __attribute__((always_inline)) {
    if constexpr (kSwapped) {
      t.dot<0, 6, 4>();
      t.dot<1, 7, 4>();
      t.dot<2, 6, 5>();
      t.dot<3, 7, 5>();
    } else {
      t.dot<0, 4, 6>();
      t.dot<1, 4, 7>();
      t.dot<2, 5, 6>();
      t.dot<3, 5, 7>();
    }
    between();
  };
  constexpr int64_t low = kParts - 1;  // the part of `b` that is multiplied first
  t.load<4>(a.tile(0, 0), a.row);
  t.load<6>(b.tile(0, low), b.row);
  t.load<5>(a.tile(1, 0), a.row);
  t.load<7>(b.tile(1, low), b.row);
  products();
  if constexpr (kParts == 2) {
    t.load<6>(b.tile(0, 0), b.row);
    t.load<7>(b.tile(1, 0), b.row);
    products();
    t.load<4>(a.tile(0, 1), a.row);
    t.load<5>(a.tile(1, 1), a.row);
    products();
  }
}

constexpr int64_t products_of(int64_t parts) { return 2 * parts - 1; }

}  // namespace
}  // namespace stochprune
