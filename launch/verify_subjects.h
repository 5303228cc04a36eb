#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "launch/numeric_check.h"
#include "parallel/plan/plan.h"

namespace periplus::launch {

/// One layout and one kind of problem that `periplus verify` looks at, and the strategies for it.
struct VerifySubject {
  std::string layout, kind;
  std::vector<std::string> strategies;
  bool on_devices = true;  ///< Whether the kernels run on CUDA devices too.

  /// The problem of so many ranks and such documents. Each by strategy.
  struct Problem {
    std::function<std::string(const std::string& strategy)> refusal;  ///< Empty, or why it cannot be planned.
    std::function<plan::Plan(const std::string& strategy, Pass)> plan;
    std::function<NumericCheck(const std::string& strategy, Device)> compare;  ///< With the fp64 reference.
  };
  std::function<Problem(std::span<const std::int64_t> borders, int ranks)> problem;
};

/// Both may be "all".
std::vector<VerifySubject> verify_subjects(const std::string& strategy, const std::string& layout);

}  // namespace periplus::launch
