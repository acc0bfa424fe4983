#include "threads.h"

#include <dlfcn.h>

#include <algorithm>
#include <thread>
#include <vector>

namespace stochprune {
namespace {

struct OpenMP {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
  int (*thread_num)();
  int (*num_threads)();
};

const OpenMP* openmp() {
  static const OpenMP api = {
      reinterpret_cast<void (*)(void (*)(void*), void*, unsigned, unsigned)>(dlsym(RTLD_DEFAULT, "GOMP_parallel")),
      reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "omp_get_thread_num")),
      reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "omp_get_num_threads")),
  };
  return api.parallel && api.thread_num && api.num_threads ? &api : nullptr;
}

struct Job {
  int64_t rows;
  const std::function<void(int64_t, int64_t)>& body;

  void part(int i, int n) const {
    const int64_t first = rows * i / n, last = rows * (i + 1) / n;
    if (first < last) body(first, last);
  }
};

}  // namespace

void parallel_rows(int threads, int64_t rows, const std::function<void(int64_t, int64_t)>& body) {
  const int n = int(std::min<int64_t>(threads, rows));
  const Job job{rows, body};
  if (n <= 1) {
    job.part(0, 1);
  } else if (const OpenMP* omp = openmp()) {
    struct Context {
      const Job& job;
      const OpenMP& omp;
    } context{job, *omp};
    omp->parallel(
        [](void* p) {
          const auto& c = *static_cast<Context*>(p);
          c.job.part(c.omp.thread_num(), c.omp.num_threads());
        },
        &context, unsigned(n), 0);
  } else {
    std::vector<std::thread> pool;
    for (int i = 1; i < n; ++i) pool.emplace_back([&job, i, n] { job.part(i, n); });
    job.part(0, n);
    for (auto& t : pool) t.join();
  }
}

}  // namespace stochprune
