#include "launch/verify_subjects.h"

#include <algorithm>
#include <memory>

#include "launch/attention_options.h"
#include "launch/linear_check.h"
#include "launch/linear_options.h"
#include "parallel/strategy/linear/strategy.h"
#include "parallel/strategy/strategy.h"

namespace periplus::launch {
namespace {

VerifySubject::Problem attention_problem(const std::string& layout, const VerificationCase& kind, std::span<const std::int64_t> borders,
                                         int ranks) {
  const auto problem =
      std::make_shared<const AttentionProblem>(verification_problem(layout_kind_from_string(layout), kind, borders, ranks));
  return {[=](const std::string& name) { return strategy::refusal(strategy::find_strategy(name), *problem, {.strategy = name}); },
          [=](const std::string& name, Pass pass) { return make_plan(*problem, {.strategy = name}, pass); },
          [=](const std::string& name, Device device) { return compare_with_reference(*problem, {.strategy = name}, device); }};
}

VerifySubject::Problem linear_problem(const std::string& layout, const LinearVerificationCase& kind, std::span<const std::int64_t> borders,
                                      int ranks) {
  namespace linear = strategy::linear;
  const auto problem =
      std::make_shared<const LinearAttentionProblem>(verification_problem(layout_kind_from_string(layout), kind, borders, ranks));
  return {[=](const std::string& name) { return linear::refusal(linear::find_strategy(name), *problem, {.strategy = name}); },
          [=](const std::string& name, Pass pass) { return make_plan(*problem, {.strategy = name}, pass); },
          [=](const std::string& name, Device) { return compare_with_reference(*problem, {.strategy = name}); }};
}

std::vector<std::string> chosen(const std::string& choice, const std::vector<std::string>& all) {
  if (choice == "all") return all;
  return std::ranges::find(all, choice) == all.end() ? std::vector<std::string>{} : std::vector<std::string>{choice};
}

}  // namespace

std::vector<VerifySubject> verify_subjects(const std::string& strategy, const std::string& layout) {
  std::vector<VerifySubject> subjects;
  const auto add = [&](const auto& kinds, std::vector<std::string> strategies, const std::vector<std::string>& layouts, bool on_devices,
                       auto make) {
    if (strategies.empty()) return;
    for (const std::string& where : chosen(layout, layouts)) {
      for (const auto& kind : kinds) {
        subjects.push_back({where, kind.name(), strategies, on_devices,
                            [=](std::span<const std::int64_t> borders, int ranks) { return make(where, kind, borders, ranks); }});
      }
    }
  };
  add(verification_cases(), chosen(strategy, strategy_names()), layout_names(), true, attention_problem);
  add(linear_verification_cases(), chosen(strategy, linear_strategy_names()), linear_layout_names(), false, linear_problem);
  return subjects;
}

}  // namespace periplus::launch
