#include "engine.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <numeric>
#include <ranges>

#include "threads.h"

namespace stochprune {
namespace {

size_t size_of(DType t) { return t == DType::f32 ? 4 : 2; }

ConstMatrix from_row(ConstMatrix m, int64_t r) {
  if (m.data) m.data = static_cast<const char*>(m.data) + size_t(r * m.stride) * size_of(m.dtype);
  return m;
}

Matrix from_row(Matrix m, int64_t r) {
  if (m.data) m.data = static_cast<char*>(m.data) + size_t(r * m.stride) * size_of(m.dtype);
  return m;
}

template <class V>  // Thresholds, Bits
V from_row(V v, int64_t r) {
  if (v.data) v.data += r * v.stride;
  return v;
}

Divergence from_row(Divergence kl, int64_t r) { return {from_row(kl.prior, r), kl.scale}; }

// The gradients from row `r` on, for draw `d`: the first draw overwrites them unless `add`, the others add to them.
Gradients from_row(const Gradients& to, int64_t r, int64_t d) {
  return {from_row(to.weight, r), from_row(to.logits, r), to.add || d > 0};
}

// The description of some rows under draw `d`.
Masked part(Masked m, int64_t d, Rows rows) {
  m.draw += d;
  m.draws = 1;
  m.shape.rows = rows.count;
  if (m.rows) {
    m.rows += rows.first;
    return m;
  }
  m.row += uint64_t(rows.first);
  m.weight = from_row(m.weight, rows.first);
  m.logits = from_row(m.logits, rows.first);
  m.thresholds = from_row(m.thresholds, rows.first);
  return m;
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

// With fewer weights, waking a thread costs more time than the thread saves.
constexpr int64_t kWeightsPerThread = 1 << 14;

template <class F>
void split(int threads, Shape shape, F&& body) {
  const int64_t useful = 1 + shape.rows * shape.cols / kWeightsPerThread;
  parallel_rows(int(useful < threads ? useful : threads), shape.rows,
                [&](int64_t first, int64_t last) { body(first, Shape{last - first, shape.cols}); });
}

// Runs body(part, first row, first row counted over all draws), each part some rows under one draw.
template <class F>
void split_draws(int threads, const Masked& m, Rows rows, F&& body) {
  split(threads, Shape{m.draws * rows.count, m.shape.cols}, [&](int64_t first, Shape all) {
    for (int64_t at = first, end = first + all.rows; at < end;) {
      const int64_t d = at / rows.count, r = at % rows.count, count = std::min(rows.count - r, end - at);
      body(part(m, d, {rows.first + r, count}), rows.first + r, at);
      at += count;
    }
  });
}

// Runs body(part, draw, first row), each part some rows under one draw. A thread takes all draws of its rows in order, so that
// it can sum them.
template <class F>
void split_rows(int threads, const Masked& m, Rows rows, F&& body) {
  split(threads, Shape{rows.count, m.shape.cols}, [&](int64_t r, Shape some) {
    for (int64_t d = 0; d < m.draws; ++d) body(part(m, d, {rows.first + r, some.rows}), d, r);
  });
}

Rows all(const Masked& m) { return {0, m.shape.rows}; }

constexpr int64_t kChunk = 1 << 12;

// Runs body(chunk, first weight, number of weights) on chunks of one row that do not depend on the number of threads.
template <class F>
void for_each_chunk(int threads, int64_t count, F&& body) {
  split(threads, Shape{(count + kChunk - 1) / kChunk, kChunk}, [&](int64_t first, Shape part) {
    for (int64_t c = first; c < first + part.rows; ++c) body(c, c * kChunk, std::min(kChunk, count - c * kChunk));
  });
}

// The sum of term(first weight, number of weights) over chunks, in order.
template <class F>
double sum_of_chunks(int threads, int64_t count, F&& term) {
  std::vector<double> partial(size_t(count / kChunk + 1), 0.0);
  for_each_chunk(threads, count, [&](int64_t c, int64_t first, int64_t n) { partial[size_t(c)] = term(first, n); });
  return std::accumulate(partial.begin(), partial.end(), 0.0);
}

// to [cols, lanes] = x [examples, cols]^T of some columns, zeros beside; 16 columns are one or more lines of x's cache.
void transpose(const float* x, float* to, int64_t cols, int examples, int lanes, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; c += 16)
    for (int m = 0; m < lanes; ++m)
      for (int64_t i = c; i < std::min(c + 16, end); ++i) to[i * lanes + m] = m < examples ? x[m * cols + i] : 0.0f;
}

}  // namespace

void keep_mask(const Masked& m, uint8_t* keep, int threads) {
  const Kernels& k = kernels();
  split_draws(threads, m, all(m), [&](const Masked& part, int64_t, int64_t at) { k.keep_mask(part, keep + at * m.shape.cols); });
}

void stochastic_round(const Masked& m, uint16_t* out, int threads) {
  const Kernels& k = kernels();
  split_draws(threads, m, all(m),
              [&](const Masked& part, int64_t, int64_t at) { k.stochastic_round(part, out + at * m.shape.cols); });
}

bool thresholds(Shape shape, ConstMatrix logits, uint16_t* out, int threads) {
  const Kernels& k = kernels();
  std::atomic<bool> nan{false};
  split(threads, shape, [&](int64_t r, Shape part) {
    if (k.thresholds(part, from_row(logits, r), out + r * shape.cols)) nan = true;
  });
  return nan;
}

bool masked_weight(const Masked& m, Rows rows, Matrix out, Bits kept, int threads) {
  const Kernels& k = kernels();
  std::atomic<bool> nan{false};
  split_draws(threads, m, rows, [&](const Masked& part, int64_t, int64_t at) {
    if (k.masked_weight(part, from_row(out, at), from_row(kept, at))) nan = true;
  });
  return nan;
}

void weight_grad(const Masked& m, Rows rows, ConstMatrix grad, Bits kept, Divergence kl, Gradients to, int threads) {
  const Kernels& k = kernels();
  split_rows(threads, m, rows, [&](const Masked& part, int64_t d, int64_t r) {
    const int64_t at = d * rows.count + r;
    k.weight_grad(part, from_row(grad, at), from_row(kept, at), d ? Divergence{} : from_row(kl, rows.first + r),
                  from_row(to, rows.first + r, d));
  });
}

void gaussian_weight(const Masked& m, ConstMatrix mu, ConstMatrix rho, Matrix out, int threads) {
  const Kernels& k = kernels();
  split_draws(threads, m, all(m), [&](const Masked& part, int64_t r, int64_t at) {
    k.gaussian_weight(part, from_row(mu, r), from_row(rho, r), from_row(out, at));
  });
}

void gaussian_grad(const Masked& m, ConstMatrix grad, ConstMatrix rho, Matrix drho, int threads) {
  const Kernels& k = kernels();
  split_rows(threads, m, all(m), [&](const Masked& part, int64_t d, int64_t r) {
    k.gaussian_grad(part, from_row(grad, d * m.shape.rows + r), from_row(rho, r), from_row(drho, r), d > 0);
  });
}

bool nm_masked_weight(const Masked& m, Pattern pattern, Matrix out, int threads) {
  const Kernels& k = kernels();
  std::atomic<bool> nan{false};
  split_draws(threads, m, all(m), [&](const Masked& part, int64_t, int64_t at) {
    if (k.nm_masked_weight(part, pattern, from_row(out, at))) nan = true;
  });
  return nan;
}

void nm_weight_grad(const Masked& m, Pattern pattern, ConstMatrix grad, Gradients to, int threads) {
  const Kernels& k = kernels();
  split_rows(threads, m, all(m), [&](const Masked& part, int64_t d, int64_t r) {
    k.nm_weight_grad(part, pattern, from_row(grad, d * m.shape.rows + r), from_row(to, r, d));
  });
}

bool moments(Shape shape, ConstMatrix weight, ConstMatrix logits, ConstMatrix rho, Matrix mean, Matrix variance, int threads) {
  const Kernels& k = kernels();
  std::atomic<bool> nan{false};
  split(threads, shape, [&](int64_t r, Shape part) {
    if (k.moments(part, from_row(weight, r), from_row(logits, r), from_row(rho, r), from_row(mean, r), from_row(variance, r)))
      nan = true;
  });
  return nan;
}

void moments_grad(Shape shape, ConstMatrix dmean, ConstMatrix dvariance, ConstMatrix weight, ConstMatrix logits, ConstMatrix rho,
                  Matrix dweight, Matrix dlogits, Matrix drho, int threads) {
  const Kernels& k = kernels();
  split(threads, shape, [&](int64_t r, Shape part) {
    k.moments_grad(part, from_row(dmean, r), from_row(dvariance, r), from_row(weight, r), from_row(logits, r), from_row(rho, r),
                   from_row(dweight, r), from_row(dlogits, r), from_row(drho, r));
  });
}

void sparse_linear(Shape shape, const SparseRows& w, int64_t batch, const float* x, const float* bias, float* y, int threads) {
  const Kernels& k = kernels();
  // Threads share the kept weights evenly; a row counts for one more, so that empty ones are shared too.
  const int64_t work = w.first[shape.rows] + shape.rows;
  const auto row_at = [&, rows = std::views::iota(int64_t{0}, shape.rows)](int64_t position) {
    return *std::ranges::lower_bound(rows, position, {}, [&](int64_t r) { return w.first[r] + r; });
  };
  const int64_t widest = sparse_lanes(int(std::min<int64_t>(batch, kSparseBatch)));
  const std::unique_ptr<float[]> side_by_side(widest == 1 ? nullptr : new float[size_t(shape.cols * widest)]);
  for (int64_t m = 0; m < batch; m += kSparseBatch) {
    const int examples = int(std::min<int64_t>(kSparseBatch, batch - m)), lanes = sparse_lanes(examples);
    const float* from = x + m * shape.cols;
    if (lanes > 1) {
      split(threads, Shape{shape.cols, lanes}, [&](int64_t first, Shape part) {
        transpose(from, side_by_side.get(), shape.cols, examples, lanes, first, first + part.rows);
      });
      from = side_by_side.get();
    }
    split(threads, Shape{work, examples}, [&](int64_t first, Shape part) {
      k.sparse_linear(w, row_at(first), row_at(first + part.rows), from, bias, {y + m * shape.rows, shape.rows, DType::f32},
                      examples);
    });
  }
}

double bernoulli_kl(int64_t count, ConstMatrix logits, ConstMatrix prior, int threads) {
  const Kernels& k = kernels();
  return sum_of_chunks(threads, count, [&](int64_t i, int64_t n) {
    return k.bernoulli_kl(n, from_weight(logits, i), from_weight(prior, i));
  });
}

double gaussian_kl(int64_t count, Gaussians g, int threads) {
  const Kernels& k = kernels();
  return sum_of_chunks(threads, count, [&](int64_t i, int64_t n) { return k.gaussian_kl(n, from_weight(g, i)); });
}

void bernoulli_kl_grad(int64_t count, double scale, ConstMatrix logits, ConstMatrix prior, Matrix dlogits, Matrix dprior,
                       int threads) {
  const Kernels& k = kernels();
  for_each_chunk(threads, count, [&](int64_t, int64_t i, int64_t n) {
    k.bernoulli_kl_grad(n, scale, from_weight(logits, i), from_weight(prior, i), from_weight(dlogits, i), from_weight(dprior, i));
  });
}

void gaussian_kl_grad(int64_t count, double scale, Gaussians g, GaussianGrads d, int threads) {
  const Kernels& k = kernels();
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
