#include "kernels/scan_steps.h"

#include <map>

namespace periplus::kernels {

std::vector<ScanStep> scan_steps(std::span<const UnitFold> folds, bool reverse, Update update) {
  std::map<std::int64_t, UnitFold> longest;  // of the folds so far, by where they begin
  std::vector<ScanStep> steps;
  for (const UnitFold& fold : folds) {
    if (update == Update::accumulate) {
      steps.push_back({fold.target, fold.target, fold.begin, fold.end});
      continue;
    }
    ScanStep step{fold.target, ScanStep::kZero, fold.begin, fold.end};
    const auto [found, fresh] = longest.try_emplace(reverse ? fold.end : fold.begin, fold);
    UnitFold& earlier = found->second;
    if (!fresh && earlier.end - earlier.begin <= fold.end - fold.begin) {
      step.from = earlier.target;
      (reverse ? step.end : step.begin) = reverse ? earlier.begin : earlier.end;
      earlier = fold;
    }
    steps.push_back(step);
  }
  return steps;
}

}  // namespace periplus::kernels
