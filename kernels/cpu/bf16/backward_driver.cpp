// Backward attention on tiles: hands out items of 512 keys to the team.
//
// Query rows are packed once for all items, by the first that needs them. So that the scratch (about 64 MiB) does not grow with
// the sequence, at most 16,384 rows and as many keys are taken at a time: such a rectangle is a problem of its own that adds to
// the gradients. Rectangles come in a fixed order, and items take turns at each block of dq, so the sums do not depend on the
// number of threads.
#include <algorithm>
#include <vector>

#include "kernels/band_tiles.h"
#include "kernels/cpu/bf16/attention.h"
#include "kernels/cpu/carver.h"
#include "kernels/cpu/scratch.h"

namespace periplus::kernels::cpu::bf16 {
namespace {

using Problem = BackwardProblem<bfloat16, float>;

constexpr std::int64_t kPartKeys = 16384, kPartQueries = 16384;
constexpr std::int64_t kPartBytes = std::int64_t{64} << 20;

std::int64_t blocks_of(std::int64_t rows) { return (rows + kBlock - 1) / kBlock; }

PackedQueries carve_queries(Carver& carver, const AttentionShape& shape) {
  const std::int64_t rows = blocks_of(shape.query_rows) * kBlock, d = padded(shape.width_qk), e = padded(shape.width_v);
  PackedQueries packed;
  packed.queries = carver.take<bfloat16>(rows * d);
  packed.douts = carver.take<bfloat16>(rows * e);
  packed.query_rows = carver.take<bfloat16>(rows * d);
  packed.dout_rows = carver.take<bfloat16>(rows * e);
  packed.lse = carver.take<float>(rows);
  packed.delta = carver.take<float>(rows);
  packed.alive = carver.take<std::uint32_t>(rows / kUnit);
  packed.dq = carver.take<float>(rows * d);
  packed.poisoned = carver.take<std::uint8_t>(rows);
  packed.turns = carver.take<std::int32_t>(rows / kBlock);
  return packed;
}

template <class T>
Strided<T> shifted(Strided<T> tensor, std::int64_t rows, std::int64_t heads) {
  tensor.data += rows * tensor.row + heads * tensor.head;
  return tensor;
}

/// Rows [q0, q1) and keys [k0, k1) of `kv_heads` key/value heads from `kv_head` on.
struct Rectangle {
  std::int64_t q0, q1, k0, k1;
  std::int64_t kv_head, kv_heads;
};

Problem cut(const Problem& whole, const Rectangle& part) {
  Problem problem = whole;
  const std::int64_t group = whole.shape.heads / whole.shape.kv_heads, head = part.kv_head * group;
  problem.shape.query_rows = part.q1 - part.q0;
  problem.shape.key_rows = part.k1 - part.k0;
  problem.shape.kv_heads = part.kv_heads;
  problem.shape.heads = part.kv_heads * group;
  problem.q = shifted(whole.q, part.q0, head);
  problem.dout = shifted(whole.dout, part.q0, head);
  problem.lse = shifted(whole.lse, part.q0, head);
  problem.delta = shifted(whole.delta, part.q0, head);
  problem.dq = shifted(whole.dq, part.q0, head);
  problem.k = shifted(whole.k, part.k0, part.kv_head);
  problem.v = shifted(whole.v, part.k0, part.kv_head);
  problem.dk = shifted(whole.dk, part.k0, part.kv_head);
  problem.dv = shifted(whole.dv, part.k0, part.kv_head);
  problem.overwrite_dq = whole.overwrite_dq && part.k0 == 0;
  problem.overwrite_dkdv = whole.overwrite_dkdv && part.q0 == 0;
  return problem;
}

std::vector<Band> cut(std::span<const Band> bands, const Rectangle& part) {
  std::vector<Band> cut;
  for (Band band : bands) {
    band.q0 = std::max(band.q0, part.q0);
    band.q1 = std::min(band.q1, part.q1);
    band.k0 = std::max(band.k0, part.k0);
    band.k1 = std::min(band.k1, part.k1);
    band = tighten(band);
    if (band.q0 < band.q1) cut.push_back(moved(band, -part.q0, -part.k0));
  }
  return cut;
}

/// The whole of one problem that fits the scratch.
class BackwardPart {
 public:
  BackwardPart(const Kernels& kernels, const Problem& problem, std::span<const Band> bands, StreamView stream)
      : kernels_(kernels), problem_(problem), stream_(stream), tiles_(bands, BandTiles::Axis::query, problem.shape.query_rows, kUnit) {
    for (std::int64_t tile = 0; tile < blocks_of(problem.shape.query_rows) * (kBlock / kUnit); ++tile) {
      if (tile >= tiles_.tiles()) {
        lists_.push_back({nullptr, 0});
      } else {
        lists_.push_back({tiles_.of(tile).data(), static_cast<std::int64_t>(tiles_.of(tile).size())});
      }
    }
  }

  void run() {
    const AttentionShape& shape = problem_.shape;
    const std::int64_t group = shape.heads / shape.kv_heads;
    const std::int64_t items = (shape.key_rows + kBackwardItemKeys - 1) / kBackwardItemKeys * shape.kv_heads;
    const double flop = static_cast<double>((6 * shape.width_qk + 4 * shape.width_v) * shape.heads) * static_cast<double>(tiles_.area());
    const int team = team_size(std::max<std::int64_t>(items, 1), flop);
    const std::int64_t thread_bytes = whole_pages(kernels_.backward_scratch_bytes(shape));
    Carver count(nullptr);
    carve(count);
    const std::int64_t shared_bytes = whole_pages(count.bytes());
    std::byte* scratch = team_scratch(shared_bytes + thread_bytes * team);
    Carver carver(scratch);
    carve(carver);
    std::byte* threads = scratch + shared_bytes;
    for (const PackedQueries& packed : queries_) std::fill_n(packed.turns, blocks_of(shape.query_rows), 0);
    if (problem_.overwrite_dq) zero_unseen_blocks();
    for_each_item_on(team, items, stream_, [&](std::int64_t item, int thread, const Progress& progress) {
      // First keys first: under a causal mask most rows see them, and items wait for those before.
      const std::int64_t kv_head = item % shape.kv_heads, first = item / shape.kv_heads * kBackwardItemKeys;
      kernels_.backward(
          problem_, {kv_head, first, std::min(kBackwardItemKeys, shape.key_rows - first), lists_.data(), queries_.data() + kv_head * group,
                     poisoned_keys_[static_cast<std::size_t>(kv_head)], threads + thread * thread_bytes, progress});
    });
  }

 private:
  void carve(Carver& carver) {
    queries_.clear();
    poisoned_keys_.clear();
    for (std::int64_t head = 0; head < problem_.shape.heads; ++head) queries_.push_back(carve_queries(carver, problem_.shape));
    for (std::int64_t head = 0; head < problem_.shape.kv_heads; ++head) {
      poisoned_keys_.push_back(carver.take<std::uint8_t>(problem_.shape.key_rows));
    }
  }

  /// No item stores the dq of blocks that no band reaches.
  void zero_unseen_blocks() {
    const auto units = kBlock / kUnit;
    for (std::int64_t block = 0; block < blocks_of(problem_.shape.query_rows); ++block) {
      const auto first = lists_.begin() + block * units;
      if (std::any_of(first, first + units, [](const TileBands& list) { return list.count > 0; })) continue;
      for (std::int64_t row = block * kBlock; row < std::min((block + 1) * kBlock, problem_.shape.query_rows); ++row) {
        for (std::int64_t head = 0; head < problem_.shape.heads; ++head) {
          std::fill_n(problem_.dq.data + row * problem_.dq.row + head * problem_.dq.head, problem_.shape.width_qk, 0.0f);
        }
      }
    }
  }

  const Kernels& kernels_;
  const Problem& problem_;
  StreamView stream_;
  BandTiles tiles_;
  std::vector<TileBands> lists_;
  std::vector<PackedQueries> queries_;
  std::vector<std::uint8_t*> poisoned_keys_;
};

/// Bytes of scratch for each row of a head.
std::int64_t query_row_bytes(const AttentionShape& shape) { return 8 * padded(shape.width_qk) + 4 * padded(shape.width_v) + 16; }

}  // namespace

void attend_backward(const Kernels& kernels, const Problem& problem, std::span<const Band> bands, StreamView stream) {
  const AttentionShape& shape = problem.shape;
  if (shape.heads == 0) return;
  const std::int64_t group = shape.heads / shape.kv_heads;
  const std::int64_t keys = std::min(kPartKeys, std::max<std::int64_t>(shape.key_rows, 1));
  const std::int64_t most_rows = std::max(kPartBytes / (group * query_row_bytes(shape)) / kBlock * kBlock, 4 * kBlock);
  const std::int64_t rows = std::min({kPartQueries, most_rows, std::max<std::int64_t>(shape.query_rows, 1)});
  const std::int64_t head_bytes = group * rows * query_row_bytes(shape);
  const std::int64_t at_once = std::clamp<std::int64_t>(kPartBytes / head_bytes, 1, shape.kv_heads);
  for (std::int64_t head = 0; head < shape.kv_heads; head += at_once) {
    for (std::int64_t k0 = 0; k0 == 0 || k0 < shape.key_rows; k0 += keys) {
      for (std::int64_t q0 = 0; q0 == 0 || q0 < shape.query_rows; q0 += rows) {
        const Rectangle part{q0,   std::min(q0 + rows, shape.query_rows),   k0, std::min(k0 + keys, shape.key_rows),
                             head, std::min(at_once, shape.kv_heads - head)};
        const Problem own = cut(problem, part);
        const std::vector<Band> own_bands = cut(bands, part);
        if (own_bands.empty() && !own.overwrite_dq && !own.overwrite_dkdv) continue;
        BackwardPart(kernels, own, own_bands, stream).run();
      }
    }
  }
}

}  // namespace periplus::kernels::cpu::bf16
