#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <utility>

#include "parallel/plan/builder.h"

namespace periplus::plan {

/// Makes plans one after another, each in the memory of the one before.
class PlanMaker {
 public:
  /// Of the programs that `build(program)` writes for the ranks of the claim's layout. The plan may be moved from; else it is
  /// good until the next.
  template <class Build>
  Plan& make(Claim claim, const Build& build) {
    if (!plan_) plan_.emplace(Plan{{}, claim});
    plan_->claim = std::move(claim);
    plan_->programs.resize(static_cast<std::size_t>(plan_->claim.layout.ranks()));
    builder_.begin_plan(plan_->claim);
    for (Rank rank = 0; rank < plan_->claim.layout.ranks(); ++rank) {
      Program& program = plan_->programs[static_cast<std::size_t>(rank)];
      builder_.restart(rank, std::move(program));
      build(builder_);
      program = builder_.build(std::span<const Program>(plan_->programs).first(static_cast<std::size_t>(rank)));
    }
    return *plan_;
  }

 private:
  std::optional<Plan> plan_;
  ProgramBuilder builder_{0};
};

}  // namespace periplus::plan
