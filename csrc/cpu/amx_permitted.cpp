#include "amx.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace stochprune {

bool amx_permitted() {
#if defined(__x86_64__) && defined(__linux__)
  static const bool permitted = [] {
    constexpr unsigned kSaves = 1u << 27, kTileUnit = 1u << 24, kBfloat16 = 1u << 22, kTileState = 3u << 17;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kSaves)) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kTileUnit) || !(d & kBfloat16)) return false;
    unsigned enabled, high;
    asm volatile("xgetbv" : "=a"(enabled), "=d"(high) : "c"(0));
    return (enabled & kTileState) == kTileState && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return permitted;
#else
  return false;
#endif
}

}  // namespace stochprune
