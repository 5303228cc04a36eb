#include "parallel/plan/pair_bands.h"

#include <algorithm>

namespace periplus::plan {

std::span<const Band> PairBands::between(const SequenceLayout& layout, const Mask& mask, int q_rank, int k_rank) {
  auto& of_queries = table_of(layout, mask).by_rank[static_cast<std::size_t>(q_rank)];
  if (of_queries.empty()) of_queries.resize(static_cast<std::size_t>(layout.ranks()));
  auto& known = of_queries[static_cast<std::size_t>(k_rank)];
  if (!known) {
    found_.clear();
    append_bands_between(layout, mask, q_rank, k_rank, found_);
    known = bands_.add_all(found_);
  }
  return *known;
}

PairBands::Table& PairBands::table_of(const SequenceLayout& layout, const Mask& mask) {
  const auto found =
      std::ranges::find_if(tables_, [&](const Table& table) { return table.layout == layout.digest() && table.mask == mask.digest(); });
  if (found != tables_.end()) return *found;
  Table& table = tables_.emplace_back(layout.digest(), mask.digest());
  table.by_rank.resize(static_cast<std::size_t>(layout.ranks()));
  return table;
}

}  // namespace periplus::plan
