// Masked products on tiles: how draws, memory and threads are divided. No masked weight is written to memory.
#include "amx.h"

#include <algorithm>
#include <numeric>

#include "../common/philox.h"
#include "engine.h"
#include "threads.h"

namespace stochprune {
namespace {

constexpr int64_t kAccumulators = 512 << 10;  // bytes of sums that a thread may keep in its second-level cache
constexpr int64_t kActivations = 1 << 20;     // bytes of activations that may stay there while all blocks pass

int64_t lead_of(const Masked& m) { return int64_t(m.col % kGroup); }
int64_t groups_of(const Masked& m) { return ceil_div(m.shape.cols + lead_of(m), kGroup); }
int64_t bytes_of(const Tiles& t) { return t.draws * t.across * t.column_words() * 4; }

// Divides the scratch memory; without memory, it counts.
class Scratch {
  char* data_;
  int64_t used_ = 0;

 public:
  explicit Scratch(char* data) : data_(data) {}
  int64_t used() const { return used_; }
  char* take(int64_t bytes) {
    const int64_t at = used_;
    used_ += ceil_div(bytes, 64) * 64;
    return data_ ? data_ + at : nullptr;
  }
};

// How a product is divided: how many draws pass at a time, and how many blocks accumulate at a time.
struct Plan {
  int64_t draws, blocks, panel, workers, bytes_of_worker;
};

Plan plan(const Masked& m, BlockOf block, bool by_columns, const Packing& x, int threads) {
  const int64_t size = by_columns ? m.shape.cols + lead_of(m) : m.shape.rows, outputs = by_columns ? block.cols : block.rows;
  const int64_t sums = accumulator_bytes(outputs, x.examples);
  Plan p{};
  p.draws = std::clamp<int64_t>(kAccumulators / sums, 1, m.draws);
  p.blocks = ceil_div(size, outputs);
  p.workers = std::min<int64_t>(threads, p.blocks);
  const bool stays = bytes_of(x.to) / m.draws * p.draws <= kActivations;
  p.panel = stays ? 1 : std::clamp<int64_t>(kAccumulators / (sums * p.draws), 1, p.blocks);
  p.bytes_of_worker = kThreadBytes + p.panel * p.draws * sums;
  return p;
}

// Runs body(first block, last block, worker).
template <class F>
void each_worker(int64_t workers, int64_t blocks, F&& body) {
  parallel_rows(int(workers), workers, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) body(blocks * w / workers, blocks * (w + 1) / workers, w);
  });
}

Packing packing(const Masked& m, Activations x, bool pairs_of_examples, bool transposed, bool of_columns) {
  Packing p{x.data, x.examples, of_columns ? m.shape.cols : m.shape.rows, of_columns ? lead_of(m) : 0, pairs_of_examples,
            transposed, {}};
  const int64_t across = ceil_div(p.features + p.lead, kDeep), down = ceil_div(p.examples, kDeep);
  const int64_t parts = x.dtype == DType::f32 ? 2 : 1;
  p.to = pairs_of_examples ? Tiles{nullptr, m.draws, 2 * across, down, parts} : Tiles{nullptr, m.draws, across, 2 * down, parts};
  return p;
}

// Some draws of the activations, packed.
Tiles packed(const TileKernels& tiles, Packing p, int64_t draw, int64_t draws, char* to, int threads) {
  p.from = static_cast<const char*>(p.from) + draw * p.examples * p.features * p.to.number_bytes();
  p.to = {reinterpret_cast<uint32_t*>(to), draws, p.to.across, p.to.down, p.to.parts};
  parallel_rows(threads, draws * p.to.across, [&](int64_t first, int64_t last) { tiles.pack(p, first, last); });
  return p.to;
}

Masked some_draws(Masked m, int64_t draw, int64_t draws) {
  m.draw += draw;
  m.draws = draws;
  return m;
}

Found together(const std::vector<Found>& found) {
  return std::accumulate(found.begin(), found.end(), Found{}, [](Found a, Found b) { return a |= b; });
}

struct ForwardPass {
  Packing x;
  Plan plan;
  char *packed, *workers;

  ForwardPass(const Masked& m, Activations given, int threads, Scratch& scratch)
      : x(packing(m, given, false, true, true)), plan(stochprune::plan(m, forward_block(x.to.parts), false, x, threads)),
        packed(scratch.take(bytes_of(x.to) / m.draws * plan.draws)), workers(scratch.take(plan.workers * plan.bytes_of_worker)) {}
};

struct BackwardPass {
  Packing grad, grad_pairs, x_pairs;
  Plan plan;
  char *packed, *packed_x, *workers, *kept;

  BackwardPass(const Masked& m, Activations x, Activations g, int threads, Scratch& scratch)
      : grad(packing(m, g, false, false, false)), grad_pairs(packing(m, g, true, true, false)),
        x_pairs(packing(m, x, true, false, true)), plan(stochprune::plan(m, input_block(grad.to.parts), true, grad, threads)) {
    const auto part = [&](const Packing& p) { return bytes_of(p.to) / m.draws * plan.draws; };
    packed = scratch.take(std::max(part(grad), part(grad_pairs)));
    packed_x = scratch.take(part(x_pairs));
    workers = scratch.take(std::max<int64_t>(threads, plan.workers) * plan.bytes_of_worker);
    kept = scratch.take(plan.draws * m.shape.rows * groups_of(m) * int64_t(sizeof(uint64_t)));
  }
};

}  // namespace

int64_t tile_bytes(const Masked& m, int64_t examples, DType dtype, int threads) {
  const Activations any{nullptr, examples, dtype};
  Scratch forward(nullptr), backward(nullptr);
  ForwardPass(m, any, threads, forward);
  BackwardPass(m, any, any, threads, backward);
  return std::max(forward.used(), backward.used());
}

Found tile_forward(const Masked& m, Activations x, ConstMatrix bias, void* y, char* memory, int threads) {
  const TileKernels& tiles = *tile_kernels();
  Scratch scratch(memory);
  const ForwardPass pass(m, x, threads, scratch);
  std::vector<Found> found(size_t(pass.plan.workers));
  for (int64_t d = 0; d < m.draws; d += pass.plan.draws) {
    const int64_t draws = std::min(pass.plan.draws, m.draws - d);
    const Tiles activations = packed(tiles, pass.x, d, draws, pass.packed, threads);
    const TileProduct p{some_draws(m, d, draws), {}, lead_of(m), activations, x.examples, bias,
                        static_cast<char*>(y) + d * x.examples * m.shape.rows * activations.number_bytes(), pass.plan.panel};
    each_worker(pass.plan.workers, pass.plan.blocks, [&](int64_t first, int64_t last, int64_t w) {
      found[size_t(w)] |= tiles.forward(kernels(), p, first, last, pass.workers + w * pass.plan.bytes_of_worker);
    });
  }
  return together(found);
}

Found tile_backward(const Masked& m, Activations x, Activations grad, void* dx, Divergence kl, Gradients to, char* memory,
                    int threads) {
  const TileKernels& tiles = *tile_kernels();
  Scratch scratch(memory);
  const BackwardPass pass(m, x, grad, threads, scratch);
  std::vector<Found> found(size_t(std::max<int64_t>(threads, pass.plan.workers)));
  for (int64_t d = 0; d < m.draws; d += pass.plan.draws) {
    const Masked some = some_draws(m, d, std::min(pass.plan.draws, m.draws - d));
    Bits kept{};
    if (dx) {
      if (has_hard_mask(m) && to.weight.data) kept = {reinterpret_cast<uint64_t*>(pass.kept), groups_of(m)};
      const Tiles g = packed(tiles, pass.grad, d, some.draws, pass.packed, threads);
      const TileProduct p{some, kept, lead_of(m), g, grad.examples, {},
                          static_cast<char*>(dx) + d * x.examples * m.shape.cols * g.number_bytes(), pass.plan.panel};
      each_worker(pass.plan.workers, pass.plan.blocks, [&](int64_t first, int64_t last, int64_t w) {
        found[size_t(w)] |= tiles.input_grad(kernels(), p, first, last, pass.workers + w * pass.plan.bytes_of_worker);
      });
    }
    if (to.weight.data || to.logits.data) {
      const Tiles g = packed(tiles, pass.grad_pairs, d, some.draws, pass.packed, threads);
      const Tiles columns = packed(tiles, pass.x_pairs, d, some.draws, pass.packed_x, threads);
      const int64_t blocks = ceil_div(m.shape.rows, kGradient.rows);
      const int64_t panel = kActivations / (some.draws * columns.column_words() * 4 * (kGradient.cols / kTile));
      const TileGrad p{some, kept, lead_of(m), g, columns, std::max<int64_t>(panel, 1), d ? Divergence{} : kl,
                       {to.weight, to.logits, to.add || d > 0}};
      each_worker(std::min<int64_t>(threads, blocks), blocks, [&](int64_t first, int64_t last, int64_t w) {
        found[size_t(w)] |= tiles.weight_grad(kernels(), p, first, last, pass.workers + w * pass.plan.bytes_of_worker);
      });
    }
  }
  return together(found);
}

}  // namespace stochprune
