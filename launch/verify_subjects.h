#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "launch/attention_check.h"
#include "parallel/plan/plan_maker.h"

namespace periplus::launch {

/// Which of the subjects are looked at.
struct VerifySelection {
  std::string strategy = "all", layout = "all";
  int mask = 0;                            ///< Number of a softmax mask, from 1; 0: all, and the linear strategies.
  std::vector<std::int64_t> head_ranks{};  ///< Meshes of usp, by the ranks that share heads.
};

/// One layout and one kind of problem that `periplus verify` looks at, and the strategies for it.
struct VerifySubject {
  struct Strategy {
    std::string name{};
    int head_ranks = 0;  ///< Of usp; 0: its own choice.
  };
  std::string layout, kind;
  std::vector<Strategy> strategies;

  /// The problem of so many ranks and such documents. Each by strategy.
  struct Problem {
    std::function<std::string(const Strategy&)> refusal;  ///< Empty, or why it cannot be planned.
    std::function<const plan::Plan&(const Strategy&, Pass, plan::PlanMaker&)> plan;
    std::function<NumericCheck(const Strategy&, Device)> compare;  ///< With the fp64 reference.
  };
  std::function<Problem(std::span<const std::int64_t> borders, int ranks)> problem;
};

/// Errors: InvalidArgument if parts of the selection contradict each other.
std::vector<VerifySubject> verify_subjects(const VerifySelection& selection);

}  // namespace periplus::launch
