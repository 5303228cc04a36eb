#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "parallel/mask.h"
#include "parallel/plan/store.h"

namespace periplus::plan {

/// The bands between ranks of layouts and masks, made when they are first asked for and kept: ranks, passes and strategies ask
/// for the same again.
class PairBands {
 public:
  /// What append_bands_between appends; good until `clear`.
  std::span<const Band> between(const SequenceLayout& layout, const Mask& mask, int q_rank, int k_rank);
  void clear() { tables_.clear(), bands_.clear(); }

 private:
  struct Table {
    std::uint64_t layout, mask;  ///< Digests.
    std::vector<std::vector<std::optional<std::span<const Band>>>> by_rank = {};
  };
  Table& table_of(const SequenceLayout& layout, const Mask& mask);

  std::vector<Table> tables_;  ///< Few: that of the problem, and one of groups of its ranks.
  Store<Band> bands_;
  std::vector<Band> found_;
};

}  // namespace periplus::plan
