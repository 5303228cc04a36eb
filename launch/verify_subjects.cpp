#include "launch/verify_subjects.h"

#include <algorithm>
#include <memory>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "launch/attention_options.h"
#include "launch/linear_check.h"
#include "launch/linear_options.h"
#include "parallel/strategy/linear/strategy.h"
#include "parallel/strategy/strategy.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

using Strategy = VerifySubject::Strategy;

VerifySubject::Problem attention_problem(const std::string& layout, const VerificationCase& kind, std::span<const std::int64_t> borders,
                                         int ranks) {
  const auto problem =
      std::make_shared<const AttentionProblem>(verification_problem(layout_kind_from_string(layout), kind, borders, ranks));
  const auto how = [](const Strategy& strategy) {
    AttentionOptions options{.strategy = strategy.name};
    options.head_ranks = strategy.head_ranks;
    return options;
  };
  return {
      [=](const Strategy& it) { return strategy::refusal(strategy::find_strategy(it.name), *problem, how(it)); },
      [=](const Strategy& it, Pass pass, plan::PlanMaker& maker) -> const plan::Plan& { return make_plan(*problem, how(it), pass, maker); },
      [=](const Strategy& it, Device device) { return compare_with_reference(*problem, how(it), device); }};
}

VerifySubject::Problem linear_problem(const std::string& layout, const LinearVerificationCase& kind, std::span<const std::int64_t> borders,
                                      int ranks) {
  namespace linear = strategy::linear;
  const auto problem =
      std::make_shared<const LinearAttentionProblem>(verification_problem(layout_kind_from_string(layout), kind, borders, ranks));
  return {[=](const Strategy& it) { return linear::refusal(linear::find_strategy(it.name), *problem, {.strategy = it.name}); },
          [=](const Strategy& it, Pass pass, plan::PlanMaker& maker) -> const plan::Plan& {
            return make_plan(*problem, {.strategy = it.name}, pass, maker);
          },
          [=](const Strategy& it, Device device) { return compare_with_reference(*problem, {.strategy = it.name}, device); }};
}

std::vector<std::string> chosen(const std::string& choice, const std::vector<std::string>& all) {
  if (choice == "all") return all;
  return std::ranges::find(all, choice) == all.end() ? std::vector<std::string>{} : std::vector<std::string>{choice};
}

void check(const VerifySelection& selection) {
  constexpr std::int64_t kMostRanks = 4096;
  for (const std::int64_t ranks : selection.head_ranks) {
    if (ranks < 1 || ranks > kMostRanks) throw InvalidArgument(fmt::format("--head-ranks: {}; use 1 to {}", ranks, kMostRanks));
  }
  if (!selection.head_ranks.empty() && selection.strategy != "usp")
    throw InvalidArgument(fmt::format("--head-ranks makes meshes of usp only; use --strategy usp, not {}", selection.strategy));
  const auto count = static_cast<int>(verification_cases().size());
  if (selection.mask < 0 || selection.mask > count)
    throw InvalidArgument(fmt::format("--mask: {}; use 1 to {}, or 0 for all masks", selection.mask, count));
  if (chosen(selection.strategy, linear_strategy_names()).empty() || selection.strategy == "all") return;
  if (selection.mask > 0) throw InvalidArgument(fmt::format("--mask: the strategy {} has none; leave it out", selection.strategy));
  if (chosen(selection.layout, linear_layout_names()).empty()) {
    throw InvalidArgument(fmt::format("--layout: the strategy {} knows {} and not {}", selection.strategy,
                                      fmt::join(linear_layout_names(), ", "), selection.layout));
  }
}

/// The softmax masks to try, with a head for every rank that shares heads, or the rest of the mesh would be idle.
std::vector<VerificationCase> masks(const VerifySelection& selection) {
  std::vector<VerificationCase> all = verification_cases();
  if (selection.mask > 0) all = {all[static_cast<std::size_t>(selection.mask) - 1]};
  if (selection.head_ranks.empty()) return all;
  const auto most = static_cast<int>(std::ranges::max(selection.head_ranks));
  for (VerificationCase& kind : all) {
    const int times = (most + kind.q_heads - 1) / kind.q_heads;
    kind.q_heads *= times, kind.kv_heads *= times;
  }
  return all;
}

}  // namespace

std::vector<VerifySubject> verify_subjects(const VerifySelection& selection) {
  check(selection);
  std::vector<VerifySubject> subjects;
  const auto add = [&](const auto& kinds, const std::vector<Strategy>& strategies, const std::vector<std::string>& layouts, auto make) {
    if (strategies.empty()) return;
    for (const std::string& layout : chosen(selection.layout, layouts)) {
      for (const auto& kind : kinds) {
        subjects.push_back({layout, kind.name(), strategies,
                            [=](std::span<const std::int64_t> borders, int ranks) { return make(layout, kind, borders, ranks); }});
      }
    }
  };
  std::vector<Strategy> softmax, linear;
  for (const std::int64_t ranks : selection.head_ranks) softmax.push_back({selection.strategy, static_cast<int>(ranks)});
  if (softmax.empty()) {
    for (const std::string& name : chosen(selection.strategy, strategy_names())) softmax.push_back({name});
  }
  for (const std::string& name : chosen(selection.strategy, linear_strategy_names())) linear.push_back({name});
  add(masks(selection), softmax, layout_names(), attention_problem);
  if (selection.mask == 0) add(linear_verification_cases(), linear, linear_layout_names(), linear_problem);
  return subjects;
}

}  // namespace periplus::launch
