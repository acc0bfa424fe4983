// Parallel loops over rows on torch's OpenMP thread pool.
//
// A second OpenMP runtime would have a second pool of spinning threads that compete with torch's for the cores. So this
// library links none. It looks up GOMP_parallel, which GNU, LLVM and Intel runtimes export, in the loaded libraries.
#pragma once
#include <cstdint>
#include <functional>

namespace stochprune {

// Calls body(first, last) on disjoint ranges that cover 0 .. rows, on at most `threads` threads.
void parallel_rows(int threads, int64_t rows, const std::function<void(int64_t, int64_t)>& body);

}  // namespace stochprune
