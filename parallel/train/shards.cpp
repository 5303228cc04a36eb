#include "parallel/train/shards.h"

#include <algorithm>

namespace periplus::train {

Shards::Shards(std::span<const Section> sections, int ranks) : sections_(sections.size()), ranks_(ranks) {
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    std::int64_t offset = 0;
    for (const Section& section : sections) {
      const std::int64_t from = rank * section.elements / ranks, to = (rank + 1) * section.elements / ranks;
      parts_.push_back({static_cast<int>(rank), section.begin + from, to - from, offset});
      offset += to - from;
    }
  }
}

std::int64_t Shards::elements(int rank) const {
  const Part& last = of_rank(rank).back();
  return last.offset + last.count;
}

std::span<const Shards::Part> Shards::of_rank(int rank) const {
  return std::span(parts_).subspan(static_cast<std::size_t>(rank) * sections_, sections_);
}

std::vector<std::int64_t> Shards::counts(std::size_t section) const {
  std::vector<std::int64_t> counts;
  for (int rank = 0; rank < ranks_; ++rank) counts.push_back(part(section, rank).count);
  return counts;
}

std::int64_t Shards::largest_part() const { return std::ranges::max_element(parts_, {}, &Part::count)->count; }

Shards::Part Shards::held(int rank, std::int64_t begin, std::int64_t count) const {
  // Parts of rank 0 start where their sections do.
  const std::span<const Part> firsts = of_rank(0);
  const auto section = static_cast<std::size_t>(std::ranges::upper_bound(firsts, begin, {}, &Part::begin) - firsts.begin()) - 1;
  const Part& whole = part(section, rank);
  const std::int64_t from = std::max(begin, whole.begin), to = std::min(begin + count, whole.begin + whole.count);
  return {rank, from, std::max<std::int64_t>(to - from, 0), whole.offset + from - whole.begin};
}

std::vector<Shards::Part> Shards::owners(std::int64_t begin, std::int64_t count) const {
  std::vector<Part> found;
  for (int rank = 0; rank < ranks_; ++rank) {
    if (const Part part = held(rank, begin, count); part.count > 0) found.push_back(part);
  }
  return found;
}

}  // namespace periplus::train
