#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "parallel/plan/plan.h"

namespace periplus::plan {

/// Moves that were found to hold every row once, so that equal ones of other programs need not be sorted too.
class ProperOrders {
 public:
  bool contains(std::span<const RowMove> moves, std::int64_t rows) const;
  /// The moves have to outlive this.
  void add(std::span<const RowMove> moves, std::int64_t rows) { known_.push_back({moves, rows}); }

 private:
  struct Known {
    std::span<const RowMove> moves;
    std::int64_t rows;
  };
  std::vector<Known> known_;
};

/// Part 1 of verify for one program: ranges, operands, types and shapes. What fails is appended.
void check_form(const Program& program, int ranks, ProperOrders& proper, std::vector<std::string>& failures);

}  // namespace periplus::plan
