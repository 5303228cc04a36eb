#include "parallel/balanced_layout.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

namespace periplus {
namespace {

constexpr std::int64_t kChunksPerRank = 32;

/// Allowed pairs of the queries of each chunk.
std::vector<std::int64_t> areas_of_chunks(const Mask& mask, std::int64_t chunk, std::int64_t chunks) {
  std::vector<std::int64_t> areas(static_cast<std::size_t>(chunks), 0);
  for (const Band& band : mask.bands()) {
    for (std::int64_t c = band.q0 / chunk; c < chunks && c * chunk < band.q1; ++c) {
      Band part = band;
      part.q0 = std::max(band.q0, c * chunk), part.q1 = std::min(band.q1, (c + 1) * chunk);
      areas[static_cast<std::size_t>(c)] += area(part);
    }
  }
  return areas;
}

/// The rank of each chunk. Ties go to the lower rank, so that every process deals alike.
std::vector<int> deal(std::span<const std::int64_t> areas, int ranks) {
  std::vector<std::size_t> by_area(areas.size());
  std::iota(by_area.begin(), by_area.end(), std::size_t{0});
  std::ranges::stable_sort(by_area, std::greater(), [&](std::size_t c) { return areas[c]; });
  const std::size_t most = (areas.size() + static_cast<std::size_t>(ranks) - 1) / static_cast<std::size_t>(ranks);
  std::vector<std::int64_t> load(static_cast<std::size_t>(ranks), 0);
  std::vector<std::size_t> count(static_cast<std::size_t>(ranks), 0);
  // So many ranks may have `most` chunks, the others one less.
  std::size_t fuller = areas.size() - (most - 1) * static_cast<std::size_t>(ranks);
  std::vector<int> rank_of(areas.size(), 0);
  for (const std::size_t chunk : by_area) {
    int best = -1;
    for (int rank = 0; rank < ranks; ++rank) {
      const auto r = static_cast<std::size_t>(rank);
      const bool full = count[r] == most || (count[r] + 1 == most && fuller == 0);
      if (!full && (best < 0 || load[r] < load[static_cast<std::size_t>(best)])) best = rank;
    }
    const auto b = static_cast<std::size_t>(best);
    load[b] += areas[chunk];
    if (++count[b] == most) --fuller;
    rank_of[chunk] = best;
  }
  return rank_of;
}

}  // namespace

SequenceLayout make_layout(LayoutKind kind, int ranks, const Mask& mask) {
  if (kind != LayoutKind::balanced || ranks < 1) return SequenceLayout::make(kind, ranks, mask.cu_seqlens());
  const std::int64_t tokens = mask.cu_seqlens().back();
  const std::int64_t chunk = std::max<std::int64_t>(1, tokens / (kChunksPerRank * ranks));
  const std::int64_t chunks = (tokens + chunk - 1) / chunk;
  const std::vector<std::int64_t> areas = areas_of_chunks(mask, chunk, chunks);
  std::vector<Segment> segments;
  std::vector<std::int64_t> next_row(static_cast<std::size_t>(ranks), 0);
  const std::vector<int> rank_of = chunks > 0 ? deal(areas, ranks) : std::vector<int>();
  for (std::int64_t c = 0; c < chunks; ++c) {
    const int rank = rank_of[static_cast<std::size_t>(c)];
    const std::int64_t length = std::min(chunk, tokens - c * chunk);
    std::int64_t& row = next_row[static_cast<std::size_t>(rank)];
    segments.push_back({rank, row, c * chunk, length});
    row += length;
  }
  return SequenceLayout::balanced(ranks, mask.cu_seqlens(), std::move(segments));
}

}  // namespace periplus
