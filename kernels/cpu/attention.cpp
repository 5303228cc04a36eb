#include "kernels/cpu/attention.h"

#include <optional>
#include <vector>

#include "kernels/band_tiles.h"
#include "kernels/cpu/best_kernels.h"
#include "kernels/cpu/bf16/attention.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/tile_kernels.h"

namespace periplus::kernels::cpu {
namespace {

/// The kernels on matrix tiles of the level in use, if it has any and the problem fits them: they hide a pair by a score of
/// -inf, which a scale that is not positive would turn around.
std::optional<bf16::Kernels> fitting_matrix_kernels(const AttentionShape& shape, double scale) {
  if (std::max(shape.width_qk, shape.width_v) > bf16::kWidestHead || !(scale > 0)) return std::nullopt;
  return matrix_kernels<bf16::emulated_kernels, bf16::dot_kernels, bf16::amx_kernels>();
}

template <class S>
TileKernels<S> tile_kernels() {
  return best_kernels<S, scalar_tile_kernels, avx2_tile_kernels, avx512_tile_kernels>();
}

/// Query rows of a forward tile: fewer where threads would find too few tiles, though then keys are packed more often. Depends
/// on the shape alone, so that the bits do not depend on the number of threads.
std::int64_t forward_tile_rows(const AttentionShape& shape) {
  constexpr std::int64_t kFewest = 256, kEnoughItems = 8;
  std::int64_t rows = kForwardRows;
  while (rows > kFewest && (shape.query_rows + rows - 1) / rows * shape.heads < kEnoughItems) rows /= 2;
  return rows;
}

void zero_rows(const Strided<float>& tensor, const AttentionShape& shape, int team, StreamView stream) {
  for_each_item_on(team, (shape.query_rows + kBackwardRows - 1) / kBackwardRows, stream, [&](std::int64_t tile, int, const Progress&) {
    const std::int64_t end = std::min((tile + 1) * kBackwardRows, shape.query_rows);
    for (std::int64_t row = tile * kBackwardRows; row < end; ++row) {
      for (std::int64_t head = 0; head < shape.heads; ++head) {
        std::fill_n(tensor.data + row * tensor.row + head * tensor.head, shape.width_qk, 0.0f);
      }
    }
  });
}

}  // namespace

template <class S>
void attend(const ForwardProblem<S, float>& problem, std::span<const Band> bands, StreamView stream) {
  const AttentionShape& shape = problem.shape;
  if constexpr (std::is_same_v<S, bfloat16>) {
    if (const auto matrix = fitting_matrix_kernels(shape, problem.scale)) return bf16::attend(*matrix, problem, bands, stream);
  }
  const TileKernels<S> kernels = tile_kernels<S>();
  const std::int64_t rows = forward_tile_rows(shape);
  const BandTiles tiles(bands, BandTiles::Axis::query, shape.query_rows, rows);
  const std::int64_t items = tiles.tiles() * shape.heads;
  const double flop = 2.0 * static_cast<double>((shape.width_qk + shape.width_v) * shape.heads) * static_cast<double>(tiles.area());
  const int team = team_size(items, flop);
  const std::int64_t bytes = whole_pages(kernels.forward_scratch_bytes(shape));
  std::byte* scratch = team_scratch(bytes * team);
  for_each_item_on(team, items, stream, [&](std::int64_t item, int thread, const Progress& progress) {
    // Last tiles first: under a causal mask they are the longest.
    const std::int64_t tile = tiles.tiles() - 1 - item / shape.heads;
    const std::span<const Band> own = tiles.of(tile);
    const std::int64_t first = tile * rows;
    kernels.forward(problem, {own.data(), static_cast<std::int64_t>(own.size()), item % shape.heads, first,
                              std::min(rows, shape.query_rows - first), scratch + thread * bytes, progress});
  });
}

template <class S>
void attend_backward(const BackwardProblem<S, float>& problem, std::span<const Band> bands, StreamView stream) {
  const AttentionShape& shape = problem.shape;
  if constexpr (std::is_same_v<S, bfloat16>) {
    if (const auto matrix = fitting_matrix_kernels(shape, problem.scale)) return bf16::attend_backward(*matrix, problem, bands, stream);
  }
  const TileKernels<S> kernels = tile_kernels<S>();
  const BandTiles by_query(bands, BandTiles::Axis::query, shape.query_rows, kBackwardRows);
  const BandTiles by_key(bands, BandTiles::Axis::key, shape.key_rows, kBackwardKeys);
  std::vector<BandList> lists;
  for (std::int64_t tile = 0; tile < by_query.tiles(); ++tile) {
    lists.push_back({by_query.of(tile).data(), static_cast<std::int64_t>(by_query.of(tile).size())});
  }
  std::vector<std::int32_t> turns(static_cast<std::size_t>(shape.heads * by_query.tiles()), 0);
  const std::int64_t items = by_key.tiles() * shape.kv_heads;
  const double flop = static_cast<double>((6 * shape.width_qk + 4 * shape.width_v) * shape.heads) * static_cast<double>(by_key.area());
  const int team = team_size(items, flop);
  const std::int64_t bytes = whole_pages(kernels.backward_scratch_bytes(shape));
  std::byte* scratch = team_scratch(bytes * team);
  if (problem.overwrite_dq) zero_rows(problem.dq, shape, team, stream);
  for_each_item_on(team, items, stream, [&](std::int64_t item, int thread, const Progress& progress) {
    const std::int64_t tile = item / shape.kv_heads;
    const std::int64_t first = tile * kBackwardKeys;
    std::int64_t q0 = shape.query_rows, q1 = 0;
    for (const Band& band : by_key.of(tile)) {
      q0 = std::min(q0, band.q0);
      q1 = std::max(q1, band.q1);
    }
    const std::int64_t last_query_tile = q0 < q1 ? (q1 - 1) / kBackwardRows : -1;
    kernels.backward(problem, {item % shape.kv_heads, tile, first, std::min(kBackwardKeys, shape.key_rows - first), q0 / kBackwardRows,
                               last_query_tile, lists.data(), by_query.tiles(), turns.data(), scratch + thread * bytes, progress});
  });
}

template void attend(const ForwardProblem<float, float>&, std::span<const Band>, StreamView);
template void attend(const ForwardProblem<bfloat16, float>&, std::span<const Band>, StreamView);
template void attend(const ForwardProblem<float16, float>&, std::span<const Band>, StreamView);
template void attend_backward(const BackwardProblem<float, float>&, std::span<const Band>, StreamView);
template void attend_backward(const BackwardProblem<bfloat16, float>&, std::span<const Band>, StreamView);
template void attend_backward(const BackwardProblem<float16, float>&, std::span<const Band>, StreamView);

}  // namespace periplus::kernels::cpu
