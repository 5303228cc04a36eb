#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "parallel/plan/plan.h"

namespace periplus::plan {

/// What was found to be proper in the programs before, so that equal things of the next need no second look. Those programs
/// have to outlive this.
class Proper {
 public:
  std::span<const Slot> named;  ///< Slots of unlike names.
  /// Moves that hold every row once.
  bool contains(std::span<const RowMove> moves, std::int64_t rows) const;
  void add(std::span<const RowMove> moves, std::int64_t rows) { known_.push_back({moves, rows}); }

 private:
  struct Known {
    std::span<const RowMove> moves;
    std::int64_t rows;
  };
  std::vector<Known> known_;
};

/// Part 1 of verify for one program: ranges, operands, types and shapes. What fails is appended.
void check_form(const Program& program, int ranks, Proper& proper, std::vector<std::string>& failures);

}  // namespace periplus::plan
