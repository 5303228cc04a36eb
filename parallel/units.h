#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/linear_attention.h"
#include "parallel/layout.h"

namespace periplus {

/// Tokens that follow each other on one rank and in the packed sequence: what a recurrence passes through at one go. As long as
/// can be; may hold the borders of several documents.
struct Unit {
  int rank = 0;
  std::int64_t row0 = 0, rows = 0;  ///< Local rows.
  std::int64_t global0 = 0;
};

/// The units of a layout in the order of the sequence, and which of them a state passes through.
class Units {
 public:
  explicit Units(const SequenceLayout& layout);

  std::span<const Unit> all() const noexcept { return units_; }
  std::int64_t count() const noexcept { return static_cast<std::int64_t>(units_.size()); }
  int ranks() const noexcept { return static_cast<int>(of_rank_.size()); }
  /// Numbers of a rank's units, rising: its i-th unit is row i of its own elements and states.
  std::span<const std::int64_t> of_rank(int rank) const;
  /// The most units that a rank has.
  std::int64_t most_per_rank() const noexcept;

  /// Whether any document goes on from one unit into the next.
  bool any_goes_on() const noexcept;

  /// The runs of a rank, by local row, with units numbered as of_rank does.
  std::vector<kernels::UnitRun> runs_of(int rank) const;
  /// For each unit of the rank: the units before it that its first document passed through ...
  std::vector<kernels::UnitFold> incoming_of(int rank) const { return of_rank(rank, incoming_); }
  /// ... and those behind it that its last document goes on into. Folded in falling order they give the gradient of its outgoing
  /// state.
  std::vector<kernels::UnitFold> outgoing_of(int rank) const { return of_rank(rank, outgoing_); }
  /// The same of all units.
  std::span<const kernels::UnitFold> incoming() const noexcept { return incoming_; }
  std::span<const kernels::UnitFold> outgoing() const noexcept { return outgoing_; }

 private:
  /// Number of the unit that holds a token.
  std::int64_t holding(std::int64_t token) const;
  std::vector<kernels::UnitFold> of_rank(int rank, std::span<const kernels::UnitFold> folds) const;

  std::vector<Unit> units_;
  std::vector<std::vector<std::int64_t>> of_rank_;
  std::vector<kernels::UnitFold> incoming_, outgoing_;  ///< By unit; targets count from the first of its rank.
  std::vector<std::int64_t> cu_seqlens_;
};

}  // namespace periplus
