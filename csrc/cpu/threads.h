// Parallel loops over rows on the OpenMP pool that torch already runs.
//
// A second OpenMP runtime would bring a second pool of spinning workers that fight torch's for the cores, so this
// library links none: it looks up GOMP_parallel (GNU, LLVM and Intel runtimes export it) among the loaded libraries.
#pragma once
#include <cstdint>
#include <functional>

namespace stochprune {

// Calls body(first, last) on disjoint ranges that cover 0 .. rows, on at most `threads` threads.
void parallel_rows(int threads, int64_t rows, const std::function<void(int64_t, int64_t)>& body);

}  // namespace stochprune
