// The figures of `periplus bench gpu`: attention against cuBLAS, against itself cut into blocks, and beside other work; moves of rows;
// linear attention.
#include "launch/bench/gpu_figures.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/matmul.h"
#include "kernels/matmul.h"
#include "kernels/transfer.h"
#include "launch/bench/documents.h"
#include "launch/bench/gpu_beside.h"
#include "launch/bench/gpu_linear.h"
#include "launch/bench/gpu_problem.h"
#include "launch/bench/gpu_sides.h"
#include "launch/bench/statistics.h"
#include "parallel/layout.h"
#include "parallel/mask.h"

namespace periplus::launch::bench {
namespace {

using kernels::Update;
using kernels::cuda::Rung;

constexpr std::int64_t kProductSize = 8192;

/// The yardstick of all rates: c = a b of bf16, 8192 x 8192 x 8192.
struct ProductYardstick {
  explicit ProductYardstick(int device)
      : a(gpu_random({kProductSize, kProductSize}, DType::bf16, 11, device)),
        b(gpu_random({kProductSize, kProductSize}, DType::bf16, 12, device)),
        c({kProductSize, kProductSize}, DType::bf16, Memory({DeviceKind::cuda, device})) {}
  GpuWork side() const {
    return {[this](StreamView stream) { kernels::matmul(a, b, c, {}, stream); }, 2 * std::pow(static_cast<double>(kProductSize), 3)};
  }
  Tensor a, b, c;
};

/// Nothing above this rung while it lives.
class AtMost {
 public:
  explicit AtMost(Rung rung) : before_(kernels::cuda::highest_rung()) { kernels::cuda::set_highest_rung(std::min(rung, before_)); }
  AtMost(const AtMost&) = delete;
  AtMost& operator=(const AtMost&) = delete;
  ~AtMost() { kernels::cuda::set_highest_rung(before_); }

 private:
  Rung before_;
};

struct RateFigure {
  std::string name;
  GpuCase problem;
  Rung rung = Rung::hopper;
  bool backward = false;
  std::optional<Goal> goal;
};

std::vector<Line> measure_rate(const RateFigure& figure, const GpuSampling& sampling) {
  const AtMost rung(figure.rung);
  const GpuProblem problem(figure.problem, sampling.device);
  return wrong_or(problem.check(figure.backward, sampling.stream), figure.name, [&] {
    std::string why;
    if (!kernels::cuda::matmul_available(&why)) {
      const GpuWork side = figure.backward ? backward_side(problem) : forward_side(problem);
      Line line = rate_line(figure.name, side, side, "TFLOP/s", 1e12, {}, sampling);
      line.note = "no yardstick: " + why;
      return std::vector{line};
    }
    const ProductYardstick product(sampling.device);
    return std::vector{rate_line(figure.name, figure.backward ? backward_side(problem) : forward_side(problem), product.side(), "TFLOP/s",
                                 1e12, figure.goal, sampling)};
  });
}

/// A sequence of `ranks` shards in zigzag, block by block on one device: what virtual ranks compute, without their copies.
class Shards {
 public:
  Shards(int ranks, const GpuCase& shard, int device) {
    const std::int64_t rows_each = shard.query_rows;
    const std::vector<std::int64_t> cu_seqlens = {0, ranks * rows_each};
    const SequenceLayout layout = SequenceLayout::make(LayoutKind::zigzag, ranks, cu_seqlens);
    const Mask mask({}, cu_seqlens);
    for (int rank = 0; rank < ranks; ++rank) {
      shards_.push_back(std::make_unique<GpuProblem>(shard, device));
      for (int other = 0; other < ranks; ++other) append_bands_between(layout, mask, rank, other, bands_.emplace_back());
    }
  }
  void forward(StreamView stream) const {
    for_each_block([&](const GpuProblem& queries, const kernels::AttentionBlock& block, const GpuProblem&, bool first, bool) {
      kernels::attend(block, {queries.out, queries.lse}, first ? Update::overwrite : Update::accumulate, stream);
    });
  }
  void backward(StreamView stream) const {
    for (const auto& shard : shards_) kernels::delta(shard->dout, shard->out, shard->lse, {}, {}, shard->delta, {}, stream);
    for_each_block(
        [&](const GpuProblem& queries, const kernels::AttentionBlock& block, const GpuProblem& keys, bool first, bool first_keys) {
          kernels::attend_backward(block, queries.dout, queries.lse, queries.delta,
                                   {queries.dq, keys.dk, keys.dv, first ? Update::overwrite : Update::accumulate,
                                    first_keys ? Update::overwrite : Update::accumulate},
                                   stream);
        });
  }

 private:
  /// Each rank starts with its own block, as a ring does.
  template <class Body>
  void for_each_block(const Body& body) const {
    const std::size_t ranks = shards_.size();
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      for (std::size_t hop = 0; hop < ranks; ++hop) {
        const std::size_t other = (rank + ranks - hop) % ranks;
        const GpuProblem &queries = *shards_[rank], &keys = *shards_[other];
        const kernels::AttentionBlock block{queries.q, keys.k, keys.v, bands_[rank * ranks + other], 1 / std::sqrt(128.0), 0};
        body(queries, block, keys, hop == 0, rank == 0);
      }
    }
  }
  std::vector<std::unique_ptr<GpuProblem>> shards_;
  std::vector<std::vector<Band>> bands_;
};

std::vector<Line> measure_blocks(const GpuSampling& sampling) {
  constexpr int kRanks = 8;
  constexpr std::int64_t kRows = 8192;
  GpuCase shard = gpu_causal_case(kRows, 32, 128), sequence = gpu_causal_case(kRanks * kRows, 32, 128);
  shard.kv_heads = sequence.kv_heads = 8;
  const GpuProblem whole(sequence, sampling.device);
  const Shards shards(kRanks, shard, sampling.device);
  return wrong_or(whole.check(false, sampling.stream), "8 shards of 8K, zigzag, by blocks / 64K", [&] {
    const GpuWork forward{[&](StreamView stream) { shards.forward(stream); }, 0}, both{[&](StreamView stream) {
      shards.forward(stream);
      shards.backward(stream);
    }};
    const GpuWork whole_both{[&](StreamView stream) {
      whole.forward(Update::overwrite, stream);
      kernels::delta(whole.dout, whole.out, whole.lse, {}, {}, whole.delta, {}, stream);
      whole.backward(Update::overwrite, stream);
    }};
    return std::vector{
        time_line("8 shards of 8K, zigzag, 32/8 heads, by blocks / 64K, forward", alternate(forward, forward_side(whole), sampling), 1.04),
        time_line("8 shards of 8K, zigzag, 32/8 heads, by blocks / 64K, both", alternate(both, whole_both, sampling), 1.03)};
  });
}

/// Rows of documents one after the other: a single row may hold short ones only.
struct DocumentRows {
  DocumentRows(std::int64_t tokens, int device) {
    for (std::uint64_t seed = 1; seed <= 8; ++seed) {
      GpuCase c = gpu_causal_case(tokens, 16, 128);
      c.bands = document_bands(wikipedia_row(seed, tokens));
      rows.push_back(std::make_unique<GpuProblem>(c, device));
    }
  }
  GpuWork side(void (*run)(const GpuProblem&, StreamView), double (GpuProblem::*flop)() const) const {
    double total = 0;
    for (const auto& row : rows) total += (*row.*flop)();
    return {[this, run](StreamView stream) {
              for (const auto& row : rows) run(*row, stream);
            },
            total};
  }
  std::vector<std::unique_ptr<GpuProblem>> rows;
};

std::vector<Line> measure_documents(const GpuSampling& sampling) {
  constexpr std::int64_t kTokens = 32768;
  const GpuProblem dense(gpu_causal_case(kTokens, 16, 128), sampling.device);
  const DocumentRows documents(kTokens, sampling.device);
  const auto name = [](const char* pass) { return fmt::format("8 rows of 32K, Wikipedia lengths / dense causal, {}", pass); };
  std::string wrong = dense.check(true, sampling.stream);
  for (const auto& row : documents.rows) {
    if (wrong.empty()) wrong = row->check(true, sampling.stream);
  }
  return wrong_or(wrong, name("forward"), [&] {
    const auto forward = [](const GpuProblem& row, StreamView stream) { row.forward(Update::overwrite, stream); };
    const auto backward = [](const GpuProblem& row, StreamView stream) { row.backward(Update::overwrite, stream); };
    return std::vector{rate_line(name("forward"), documents.side(forward, &GpuProblem::forward_flop), forward_side(dense), "TFLOP/s", 1e12,
                                 Goal{0.85, 0.90}, sampling),
                       rate_line(name("backward"), documents.side(backward, &GpuProblem::backward_flop), backward_side(dense), "TFLOP/s",
                                 1e12, {}, sampling)};
  });
}

/// What Ulysses does to its shards: heads of other ranks side by side, rows of zigzag chunks in their order.
std::vector<Line> measure_permutations(const GpuSampling& sampling) {
  constexpr std::int64_t kRows = 65536, kHeads = 32, kWidth = 128;
  const Memory memory({DeviceKind::cuda, sampling.device});
  const Tensor source = gpu_random({kRows, kHeads, kWidth}, DType::bf16, 31, sampling.device);
  const Tensor target({kRows, kHeads, kWidth}, DType::bf16, memory);
  const auto bytes = 2 * static_cast<double>(source.view().size_bytes());
  const GpuWork copy{
      [&](StreamView stream) { cuda::copy_bytes(target.view().bytes(), source.view().bytes(), source.view().size_bytes(), stream); },
      bytes};
  const GpuWork heads{[&](StreamView stream) {
                        for (int part = 0; part < 8; ++part) {
                          const TensorView packed(target.view().bytes() + part * static_cast<std::int64_t>(target.view().size_bytes()) / 8,
                                                  DType::bf16, {kRows, kHeads / 8, kWidth});
                          kernels::copy(source.view().slice(1, part * kHeads / 8, kHeads / 8), packed, stream);
                        }
                      },
                      bytes};
  std::vector<RowMove> moves;
  constexpr std::int64_t kChunk = kRows / 16;
  for (std::int64_t chunk = 0; chunk < 16; ++chunk) moves.push_back(row_move(chunk * kChunk, (chunk * 5 % 16) * kChunk, kChunk));
  const GpuWork rows{[&](StreamView stream) { kernels::move_rows(source, target, moves, stream); }, bytes};
  return {rate_line("heads of 8 ranks packed, bf16, 0.5 GB / copy", heads, copy, "GB/s", 1e9, Goal{0.85, {}}, sampling),
          rate_line("16 chunks of rows moved, bf16, 0.5 GB / copy", rows, copy, "GB/s", 1e9, Goal{0.85, {}}, sampling)};
}

GpuFigure rate_figure(const std::string& id, const RateFigure& figure) {
  return {id, figure.name, [figure](const GpuSampling& sampling) { return measure_rate(figure, sampling); }};
}

}  // namespace

std::vector<GpuFigure> gpu_figures() {
  const GpuCase d128 = gpu_causal_case(16384, 16, 128), d64 = gpu_causal_case(16384, 32, 64), short128 = gpu_causal_case(4096, 16, 128);
  GpuCase grouped = gpu_causal_case(16384, 32, 128);
  grouped.kv_heads = 4;
  std::vector<GpuFigure> figures = {
      rate_figure("G1", {"causal forward, d 128, 16K / cuBLAS", d128, Rung::hopper, false, Goal{0.75, 0.85}}),
      rate_figure("G1", {"causal forward, d 128, 4K / cuBLAS", short128, Rung::hopper, false, {}}),
      rate_figure("G1", {"causal forward, d 128, 32/4 heads, 16K / cuBLAS", grouped, Rung::hopper, false, {}}),
      rate_figure("G2", {"causal backward, d 128, 16K / cuBLAS", d128, Rung::hopper, true, Goal{0.63, 0.72}}),
      rate_figure("G2", {"causal backward, d 128, 4K / cuBLAS", short128, Rung::hopper, true, {}}),
      rate_figure("G2", {"causal backward, d 128, 32/4 heads, 16K / cuBLAS", grouped, Rung::hopper, true, {}}),
      rate_figure("G3", {"causal forward, d 64, 16K / cuBLAS", d64, Rung::hopper, false, Goal{0.54, {}}}),
      rate_figure("G3", {"causal backward, d 64, 16K / cuBLAS", d64, Rung::hopper, true, {}}),
      rate_figure("portable", {"causal forward, d 128, 16K, portable / cuBLAS", d128, Rung::portable, false, Goal{0.38, {}}}),
      rate_figure("portable", {"causal backward, d 128, 16K, portable / cuBLAS", d128, Rung::portable, true, {}}),
      {"G4", "blocks in sequence", measure_blocks},
      {"G5", "beside copies", measure_beside_copies},
      {"G6", "documents", measure_documents},
      {"G12", "beside kernels", measure_beside_kernels},
      {"G9", "permutations", measure_permutations},
  };
  for (GpuFigure& figure : gpu_linear_figures()) figures.push_back(std::move(figure));
  return figures;
}

double gpu_product_rate(const GpuSampling& sampling) {
  const ProductYardstick product(sampling.device);
  const GpuWork side = product.side();
  std::vector<double> rates;
  gpu_seconds(side.work, sampling.stream);
  for (int i = 0; i < sampling.samples; ++i) rates.push_back(side.amount / gpu_seconds(side.work, sampling.stream) * 1e-12);
  return median(rates);
}

}  // namespace periplus::launch::bench
