#include "parallel/key_set.h"

#include <algorithm>

namespace periplus {

KeySet::KeySet(const SequenceLayout& layout, const Mask& mask) : layout_(layout), mask_(mask), runs_(layout.cu_seqlens().size() - 1) {
  std::size_t band = 0;
  for (const std::int64_t border : layout.cu_seqlens()) {
    while (band < mask.bands().size() && mask.bands()[band].q0 < border) ++band;
    first_band_.push_back(band);
  }
}

void KeySet::add(int rank) {
  for (const Segment& segment : layout_.segments_by_global(rank)) {
    if (segment.length == 0) continue;
    std::vector<Run>& runs = runs_[static_cast<std::size_t>(segment.document)];
    Run run{segment.global0, segment.global_end(), segment.length == 1 ? 1 : segment.stride};
    // Neighbours among ranks mostly own neighbouring chunks, so runs stay few. Strided ones interleave and stay as they are.
    for (std::size_t i = 0; i < runs.size() && run.stride == 1;) {
      const Run other = runs[i];
      if (other.stride != 1 || (other.end != run.first && run.end != other.first)) {
        ++i;
        continue;
      }
      run = {std::min(run.first, other.first), std::max(run.end, other.end), 1};
      runs[i] = runs.back();
      runs.pop_back();
    }
    runs.push_back(run);
  }
}

void KeySet::clear() {
  for (std::vector<Run>& runs : runs_) runs.clear();
}

RowRange KeySet::rows_of(const Segment& q) const {
  const auto document = static_cast<std::size_t>(q.document);
  const std::int64_t last = q.global_end() - 1;
  RowRange rows;
  for (std::size_t b = first_band_[document]; b < first_band_[document + 1]; ++b) {
    const Band& global = mask_.bands()[b];
    for (const Run& run : runs_[document]) {
      if (run.first - last > global.hi || run.end - 1 - q.global0 < global.lo) continue;
      const Segment keys{.global0 = run.first, .length = (run.end - 1 - run.first) / run.stride + 1, .stride = run.stride};
      found_.clear();
      append_bands_between(global, q, keys, found_);
      for (const Band& band : found_) rows = hull(rows, {band.q0, band.q1});
    }
  }
  return rows;
}

RowRange KeySet::rows_that_see(int q_rank) const {
  const std::span<const Segment> queries = layout_.segments_of(q_rank);
  RowRange first, last;
  for (auto q = queries.begin(); q != queries.end() && first.rows() == 0; ++q) first = rows_of(*q);
  if (first.rows() == 0) return first;
  for (auto q = queries.rbegin(); q != queries.rend() && last.rows() == 0; ++q) last = rows_of(*q);
  return hull(first, last);
}

}  // namespace periplus
