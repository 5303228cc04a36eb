// Forward attention on tiles: hands out (query head, up to 1,024 rows) items to the team, which pack keys and values as they need them.
//
// Keys and values are packed once for all query heads that share them, in parts of at most 32,768 keys and 32 MiB: a part
// is packed, attended to by every row that sees it, and forgotten; the state carries over. So the scratch does not grow
// with the sequence, at the price of one more load and store of the state for each 32,768 keys.
#include <algorithm>
#include <vector>

#include <omp.h>

#include "kernels/band_tiles.h"
#include "kernels/cpu/bf16/attention.h"
#include "kernels/cpu/carver.h"
#include "kernels/cpu/scratch.h"

namespace periplus::kernels::cpu::bf16 {
namespace {

constexpr std::int64_t kPartKeys = 32768;
constexpr std::int64_t kPartBytes = std::int64_t{32} << 20;

/// A part's keys, and how much scratch they take of each key/value head.
struct Part {
  std::int64_t first_key, keys_end, blocks;
  std::int64_t head_bytes;
};

PackedKeys carve_keys(const AttentionShape& shape, const Part& part, Carver& carver) {
  PackedKeys packed;
  packed.block_stride = kBlock * (padded(shape.width_qk) + padded(shape.width_v));
  packed.keys = carver.take<bfloat16>(part.blocks * packed.block_stride);
  packed.values = packed.keys + kBlock * padded(shape.width_qk);
  packed.poisoned = carver.take<std::uint8_t>(part.blocks * kBlock);
  packed.any_poisoned = carver.take<std::uint8_t>(1);
  packed.blocks = carver.take<std::int32_t>(part.blocks);
  packed.slots = carver.take<std::int32_t>(part.blocks);
  packed.uses = carver.take<std::int32_t>(part.blocks);
  packed.spare = carver.take<std::int32_t>(2 + part.blocks);
  packed.first_key = part.first_key;
  packed.keys_end = part.keys_end;
  return packed;
}

Part part_of(const AttentionShape& shape, std::int64_t first_key) {
  Part part{first_key, std::min(first_key + kPartKeys, shape.key_rows), 0, 0};
  part.blocks = (part.keys_end - first_key + kBlock - 1) / kBlock;
  Carver carver(nullptr);
  carve_keys(shape, part, carver);
  part.head_bytes = carver.bytes();
  return part;
}

/// Of key/value head `first` + `index`.
PackedKeys packed_head(const AttentionShape& shape, const Part& part, std::byte* scratch, std::int64_t first, std::int64_t index) {
  Carver carver(scratch + index * part.head_bytes);
  PackedKeys packed = carve_keys(shape, part, carver);
  packed.kv_head = first + index;
  return packed;
}

/// The bands' part among keys [first, end).
std::vector<Band> cut_to_keys(std::span<const Band> bands, std::int64_t first, std::int64_t end) {
  std::vector<Band> cut;
  for (Band band : bands) {
    band.k0 = std::max(band.k0, first);
    band.k1 = std::min(band.k1, end);
    band = tighten(band);
    if (band.q0 < band.q1) cut.push_back(band);
  }
  return cut;
}

/// Long items read keys and values less often; but each thread should find a few. The result does not depend on it.
std::int64_t rows_of_items(std::int64_t rows, std::int64_t heads) {
  std::int64_t item_rows = kItemRows;
  while (item_rows > 4 * kUnit && (rows + item_rows - 1) / item_rows * heads < 4 * omp_get_max_threads()) item_rows /= 2;
  return item_rows;
}

class ForwardPart {
 public:
  ForwardPart(const Kernels& kernels, const ForwardProblem<bfloat16, float>& problem, std::span<const Band> bands, const Part& part,
              StreamView stream)
      : kernels_(kernels),
        problem_(problem),
        part_(part),
        stream_(stream),
        tiles_(bands, BandTiles::Axis::query, problem.shape.query_rows, kUnit) {
    for (std::int64_t tile = 0; tile < tiles_.tiles(); ++tile) {
      lists_.push_back({tiles_.of(tile).data(), static_cast<std::int64_t>(tiles_.of(tile).size())});
    }
  }

  /// All query heads, a few key/value heads at a time.
  void run(bool overwrite) {
    const AttentionShape& shape = problem_.shape;
    const std::int64_t group = shape.heads / shape.kv_heads, items = (shape.query_rows + kItemRows - 1) / kItemRows * group;
    // As few at once as keep the team busy: what they pack is then still in the caches when it is used.
    const std::int64_t wanted = (4 * omp_get_max_threads() + items - 1) / std::max<std::int64_t>(items, 1);
    const std::int64_t at_once = std::clamp<std::int64_t>(std::min(kPartBytes / part_.head_bytes, wanted), 1, shape.kv_heads);
    for (std::int64_t first = 0; first < shape.kv_heads; first += at_once) {
      run_heads(first, std::min(at_once, shape.kv_heads - first), overwrite);
    }
  }

 private:
  void run_heads(std::int64_t first, std::int64_t count, bool overwrite) {
    const AttentionShape& shape = problem_.shape;
    const std::int64_t group = shape.heads / shape.kv_heads, heads = count * group;
    const std::int64_t item_rows = rows_of_items(shape.query_rows, heads);
    const std::int64_t row_items = (shape.query_rows + item_rows - 1) / item_rows;
    const double flop = 2.0 * static_cast<double>((shape.width_qk + shape.width_v) * heads) * static_cast<double>(tiles_.area());
    const int team = team_size(row_items * heads, flop);
    const std::int64_t thread_bytes = whole_pages(kernels_.forward_scratch_bytes(shape));
    std::byte* packed = team_scratch(part_.head_bytes * count + thread_bytes * team + kPageBytes);
    std::byte* threads = packed + whole_pages(part_.head_bytes * count);
    const auto keys_of = [&](std::int64_t head) { return packed_head(shape, part_, packed, first, head / group); };
    std::vector<std::vector<std::int32_t>> seen;
    for (std::int64_t item = 0; item < row_items; ++item) seen.push_back(blocks_seen(item * item_rows, item_rows));
    for (std::int64_t head = 0; head < heads; head += group) {
      const PackedKeys keys = keys_of(head);
      keys.any_poisoned[0] = 0;
      std::fill_n(keys.blocks, part_.blocks, std::int32_t{kUnpacked});
      std::fill_n(keys.uses, part_.blocks, 0);
      std::fill_n(keys.slots, part_.blocks, 0);
      for (const auto& blocks : seen) {
        for (const std::int32_t block : blocks) keys.uses[block] += static_cast<std::int32_t>(group);
      }
      keys.spare[0] = 0;
      keys.spare[1] = static_cast<std::int32_t>(part_.blocks);
      for (std::int64_t i = 0; i < part_.blocks; ++i) keys.spare[2 + i] = static_cast<std::int32_t>(part_.blocks - 1 - i);
    }
    // Last rows first: under a causal mask they see the most keys.
    const auto first_row_of = [&](std::int64_t item) { return (row_items - 1 - item / heads) * item_rows; };
    const auto rows_of = [&](std::int64_t item) { return std::min(item_rows, shape.query_rows - first_row_of(item)); };
    for_each_item_on(team, row_items * heads, stream_, [&](std::int64_t item, int thread, const Progress& progress) {
      const std::int64_t first_row = first_row_of(item), head = item % heads;
      const std::vector<std::int32_t>& blocks = seen[static_cast<std::size_t>(first_row / item_rows)];
      const std::int64_t next = std::min(item + team, row_items * heads - 1);
      kernels_.forward(problem_, {first * group + head,
                                  first_row,
                                  rows_of(item),
                                  lists_.data() + first_row / kUnit,
                                  keys_of(head),
                                  blocks.data(),
                                  static_cast<std::int64_t>(blocks.size()),
                                  {first_row_of(next), next == item ? 0 : rows_of(next), keys_of(next % heads)},
                                  overwrite,
                                  threads + thread * thread_bytes,
                                  progress});
    });
  }

  /// Blocks of keys that some of the rows see.
  std::vector<std::int32_t> blocks_seen(std::int64_t first_row, std::int64_t rows) const {
    std::vector<bool> is_seen(static_cast<std::size_t>(part_.blocks));
    const std::int64_t end = std::min((first_row + rows + kUnit - 1) / kUnit, tiles_.tiles());
    for (std::int64_t tile = first_row / kUnit; tile < end; ++tile) {
      std::int64_t from = part_.blocks, to = 0;
      for (const Band& band : tiles_.of(tile)) {
        from = std::min(from, (band.k0 - part_.first_key) / kBlock);
        to = std::max(to, (band.k1 - part_.first_key + kBlock - 1) / kBlock);
      }
      if (from < to) std::fill(is_seen.begin() + from, is_seen.begin() + to, true);
    }
    std::vector<std::int32_t> blocks;
    for (std::int64_t block = 0; block < part_.blocks; ++block) {
      if (is_seen[static_cast<std::size_t>(block)]) blocks.push_back(static_cast<std::int32_t>(block));
    }
    return blocks;
  }

  const Kernels& kernels_;
  const ForwardProblem<bfloat16, float>& problem_;
  Part part_;
  StreamView stream_;
  BandTiles tiles_;
  std::vector<TileBands> lists_;
};

}  // namespace

void attend(const Kernels& kernels, const ForwardProblem<bfloat16, float>& problem, std::span<const Band> bands, StreamView stream) {
  bool overwrite = problem.overwrite;
  for (std::int64_t first = 0; first < std::max<std::int64_t>(problem.shape.key_rows, 1); first += kPartKeys) {
    const Part part = part_of(problem.shape, first);
    const std::vector<Band> cut = cut_to_keys(bands, part.first_key, part.keys_end);
    if (cut.empty() && !overwrite) continue;
    ForwardPart(kernels, problem, cut, part, stream).run(overwrite);
    overwrite = false;
  }
}

}  // namespace periplus::kernels::cpu::bf16
