#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "launch/numeric_check.h"
#include "parallel/plan/plan.h"

namespace periplus::launch {

/// What one line of `periplus verify` is about: a strategy on one layout and one kind of problem.
struct VerifySubject {
  std::string strategy, layout, kind;
  bool on_devices = true;  ///< Whether its kernels run on CUDA devices too.

  /// The problem of so many ranks and such documents.
  struct Problem {
    std::string refusal;  ///< Why the strategy cannot plan it; then there is nothing else.
    std::function<plan::Plan(Pass)> plan;
    std::function<NumericCheck(Device)> compare;  ///< With the fp64 reference.
  };
  std::function<Problem(std::span<const std::int64_t> borders, int ranks)> problem;
};

/// Both may be "all".
std::vector<VerifySubject> verify_subjects(const std::string& strategy, const std::string& layout);

}  // namespace periplus::launch
