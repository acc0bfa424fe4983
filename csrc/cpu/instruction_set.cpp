// Which instruction set runs: the best one of this machine, or the one that was asked for.
#include <atomic>
#include <stdexcept>

#include "engine.h"

namespace stochprune {
namespace {

struct Choice {
  const char* name;
  const Kernels* kernels;
  const TileKernels* tiles;
};

std::vector<Choice> runnable() {
  std::vector<Choice> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && avx512_kernels()) {
    if (amx_tiles() && amx_permitted()) found.push_back({"amx", avx512_kernels(), amx_tiles()});
    found.push_back({"avx512", avx512_kernels(), nullptr});
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && avx2_kernels())
    found.push_back({"avx2", avx2_kernels(), nullptr});
#endif
  found.push_back({"scalar", scalar_kernels(), nullptr});
  return found;
}

const std::vector<Choice>& choices() {
  static const std::vector<Choice> list = runnable();
  return list;
}

// The best instruction set with tiles in software. It is slow, and serves tests.
const Choice& emulated() {
  static const Choice choice = [] {
    const Kernels* best = choices().front().kernels;
    const TileKernels* wide = best == avx512_kernels() ? emulated_tiles_avx512() : nullptr;
    return Choice{"amx-emulated", best, wide ? wide : emulated_tiles()};
  }();
  return choice;
}

std::atomic<const Choice*>& chosen() {
  static std::atomic<const Choice*> choice{&choices().front()};
  return choice;
}

}  // namespace

const Kernels& kernels() { return *chosen().load()->kernels; }
const TileKernels* tile_kernels() { return chosen().load()->tiles; }

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Choice& c : choices()) names.emplace_back(c.name);
  return names;
}

void use_instruction_set(const std::string& name) {
  std::string known;
  for (const Choice& c : choices()) {
    if (name == c.name) {
      chosen() = &c;
      return;
    }
    known += std::string(known.empty() ? "" : ", ") + c.name;
  }
  if (name != emulated().name)
    throw std::invalid_argument("unknown instruction set '" + name + "'; this machine runs: " + known + ", " + emulated().name);
  chosen() = &emulated();
}

std::string instruction_set() { return chosen().load()->name; }

}  // namespace stochprune
