#include "engine.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <stdexcept>

#include "threads.h"

namespace stochprune {
namespace {

std::vector<const Kernels*> runnable() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && avx512_kernels()) found.push_back(avx512_kernels());
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && avx2_kernels()) found.push_back(avx2_kernels());
#endif
  found.push_back(scalar_kernels());
  return found;
}

const std::vector<const Kernels*>& choices() {
  static const std::vector<const Kernels*> list = runnable();
  return list;
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> kernels{choices().front()};
  return kernels;
}

size_t size_of(DType t) { return t == DType::f32 ? 4 : 2; }

Address from_row(Address a, int64_t r) {
  a.row += uint64_t(r);
  if (a.rows) a.rows += r;
  return a;
}

ConstMatrix from_row(ConstMatrix m, int64_t r) {
  if (m.data) m.data = static_cast<const char*>(m.data) + size_t(r * m.stride) * size_of(m.dtype);
  return m;
}

Matrix from_row(Matrix m, int64_t r) {
  if (m.data) m.data = static_cast<char*>(m.data) + size_t(r * m.stride) * size_of(m.dtype);
  return m;
}

Thresholds from_row(Thresholds t, int64_t r) {
  if (t.data) t.data += r * t.stride;
  return t;
}

Bits from_row(Bits b, int64_t r) {
  if (b.data) b.data += r * b.stride;
  return b;
}

template <class M>
M from_weight(M row, int64_t i) {
  row.stride = 1;
  return row.data ? from_row(row, i) : row;
}

Gaussians from_weight(const Gaussians& g, int64_t i) {
  return {from_weight(g.mu, i), from_weight(g.sigma, i), from_weight(g.prior_mu, i), from_weight(g.prior_sigma, i),
          from_weight(g.logits, i)};
}

GaussianGrads from_weight(const GaussianGrads& g, int64_t i) {
  return {from_weight(g.mu, i), from_weight(g.sigma, i), from_weight(g.prior_mu, i), from_weight(g.prior_sigma, i),
          from_weight(g.logits, i)};
}

// Below this many weights a thread costs more to wake than it saves.
constexpr int64_t kWeightsPerThread = 1 << 14;

template <class F>
void split(int threads, Shape shape, F&& body) {
  const int64_t useful = 1 + shape.rows * shape.cols / kWeightsPerThread;
  parallel_rows(int(useful < threads ? useful : threads), shape.rows,
                [&](int64_t first, int64_t last) { body(first, Shape{last - first, shape.cols}); });
}

constexpr int64_t kChunk = 1 << 12;

// body(chunk, first weight, weights) on chunks of one row that do not depend on the number of threads.
template <class F>
void for_each_chunk(int threads, int64_t count, F&& body) {
  split(threads, Shape{(count + kChunk - 1) / kChunk, kChunk}, [&](int64_t first, Shape part) {
    for (int64_t c = first; c < first + part.rows; ++c) body(c, c * kChunk, std::min(kChunk, count - c * kChunk));
  });
}

// The sum of term(first weight, weights) over chunks, in their order.
template <class F>
double sum_of_chunks(int threads, int64_t count, F&& term) {
  std::vector<double> partial(size_t(count / kChunk + 1), 0.0);
  for_each_chunk(threads, count, [&](int64_t c, int64_t first, int64_t n) { partial[size_t(c)] = term(first, n); });
  return std::accumulate(partial.begin(), partial.end(), 0.0);
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* k : choices()) names.emplace_back(k->name);
  return names;
}

void use_instruction_set(const std::string& name) {
  std::string known;
  for (const Kernels* k : choices()) {
    if (name == k->name) {
      chosen() = k;
      return;
    }
    known += std::string(known.empty() ? "" : ", ") + k->name;
  }
  throw std::invalid_argument("unknown instruction set '" + name + "'; this machine runs: " + known);
}

std::string instruction_set() { return chosen().load()->name; }

void keep_mask(Address a, Shape shape, Thresholds t, uint8_t* mask, int64_t stride, int threads) {
  const Kernels& k = *chosen().load();
  split(threads, shape, [&](int64_t r, Shape part) { k.keep_mask(from_row(a, r), part, from_row(t, r), mask + r * stride, stride); });
}

bool thresholds(Shape shape, ConstMatrix logits, uint16_t* out, int64_t stride, int threads) {
  const Kernels& k = *chosen().load();
  std::atomic<bool> nan{false};
  split(threads, shape, [&](int64_t r, Shape part) {
    if (k.thresholds(part, from_row(logits, r), out + r * stride, stride)) nan = true;
  });
  return nan;
}

bool masked_weight(Address a, Shape shape, Relaxation relax, ConstMatrix weight, ConstMatrix logits, Thresholds t, Matrix out,
                   Bits kept, int threads) {
  const Kernels& k = *chosen().load();
  std::atomic<bool> nan{false};
  split(threads, shape, [&](int64_t r, Shape part) {
    if (k.masked_weight(from_row(a, r), part, relax, from_row(weight, r), from_row(logits, r), from_row(t, r), from_row(out, r),
                        from_row(kept, r)))
      nan = true;
  });
  return nan;
}

void weight_grad(Address a, Shape shape, Relaxation relax, ConstMatrix grad, ConstMatrix weight, ConstMatrix logits, Thresholds t,
                 Bits kept, Divergence kl, Matrix dweight, Matrix dlogits, bool accumulate, int threads) {
  const Kernels& k = *chosen().load();
  split(threads, shape, [&](int64_t r, Shape part) {
    k.weight_grad(from_row(a, r), part, relax, from_row(grad, r), from_row(weight, r), from_row(logits, r), from_row(t, r),
                  from_row(kept, r), {from_row(kl.prior, r), kl.scale}, from_row(dweight, r), from_row(dlogits, r), accumulate);
  });
}

void gaussian_weight(Address a, Shape shape, ConstMatrix mu, ConstMatrix rho, Matrix out, int threads) {
  const Kernels& k = *chosen().load();
  split(threads, shape, [&](int64_t r, Shape part) {
    k.gaussian_weight(from_row(a, r), part, from_row(mu, r), from_row(rho, r), from_row(out, r));
  });
}

void gaussian_grad(Address a, Shape shape, ConstMatrix grad, ConstMatrix rho, Matrix drho, bool accumulate, int threads) {
  const Kernels& k = *chosen().load();
  split(threads, shape, [&](int64_t r, Shape part) {
    k.gaussian_grad(from_row(a, r), part, from_row(grad, r), from_row(rho, r), from_row(drho, r), accumulate);
  });
}

bool nm_masked_weight(Address a, Shape shape, int n, int m, ConstMatrix weight, ConstMatrix logits, Matrix out, int threads) {
  const Kernels& k = *chosen().load();
  std::atomic<bool> nan{false};
  split(threads, shape, [&](int64_t r, Shape part) {
    if (k.nm_masked_weight(from_row(a, r), part, n, m, from_row(weight, r), from_row(logits, r), from_row(out, r))) nan = true;
  });
  return nan;
}

void nm_weight_grad(Address a, Shape shape, int n, int m, ConstMatrix grad, ConstMatrix weight, ConstMatrix logits, Matrix dweight,
                    Matrix dlogits, bool accumulate, int threads) {
  const Kernels& k = *chosen().load();
  split(threads, shape, [&](int64_t r, Shape part) {
    k.nm_weight_grad(from_row(a, r), part, n, m, from_row(grad, r), from_row(weight, r), from_row(logits, r), from_row(dweight, r),
                     from_row(dlogits, r), accumulate);
  });
}

bool moments(Shape shape, ConstMatrix weight, ConstMatrix logits, ConstMatrix rho, Matrix mean, Matrix variance, int threads) {
  const Kernels& k = *chosen().load();
  std::atomic<bool> nan{false};
  split(threads, shape, [&](int64_t r, Shape part) {
    if (k.moments(part, from_row(weight, r), from_row(logits, r), from_row(rho, r), from_row(mean, r), from_row(variance, r)))
      nan = true;
  });
  return nan;
}

void moments_grad(Shape shape, ConstMatrix dmean, ConstMatrix dvariance, ConstMatrix weight, ConstMatrix logits, ConstMatrix rho,
                  Matrix dweight, Matrix dlogits, Matrix drho, int threads) {
  const Kernels& k = *chosen().load();
  split(threads, shape, [&](int64_t r, Shape part) {
    k.moments_grad(part, from_row(dmean, r), from_row(dvariance, r), from_row(weight, r), from_row(logits, r), from_row(rho, r),
                   from_row(dweight, r), from_row(dlogits, r), from_row(drho, r));
  });
}

double bernoulli_kl(int64_t count, ConstMatrix logits, ConstMatrix prior, int threads) {
  const Kernels& k = *chosen().load();
  return sum_of_chunks(threads, count, [&](int64_t i, int64_t n) {
    return k.bernoulli_kl(n, from_weight(logits, i), from_weight(prior, i));
  });
}

double gaussian_kl(int64_t count, Gaussians g, int threads) {
  const Kernels& k = *chosen().load();
  return sum_of_chunks(threads, count, [&](int64_t i, int64_t n) { return k.gaussian_kl(n, from_weight(g, i)); });
}

void bernoulli_kl_grad(int64_t count, double scale, ConstMatrix logits, ConstMatrix prior, Matrix dlogits, Matrix dprior,
                       int threads) {
  const Kernels& k = *chosen().load();
  for_each_chunk(threads, count, [&](int64_t, int64_t i, int64_t n) {
    k.bernoulli_kl_grad(n, scale, from_weight(logits, i), from_weight(prior, i), from_weight(dlogits, i), from_weight(dprior, i));
  });
}

void gaussian_kl_grad(int64_t count, double scale, Gaussians g, GaussianGrads d, int threads) {
  const Kernels& k = *chosen().load();
  for_each_chunk(threads, count, [&](int64_t, int64_t i, int64_t n) {
    k.gaussian_kl_grad(n, scale, from_weight(g, i), from_weight(d, i));
  });
}

void advise_huge_pages(void* data, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) & ~(kPage - 1);
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kPage - 1);
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace stochprune
