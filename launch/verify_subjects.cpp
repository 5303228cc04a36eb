#include "launch/verify_subjects.h"

#include <memory>

#include "launch/attention_options.h"
#include "launch/linear_check.h"
#include "launch/linear_options.h"
#include "parallel/strategy/linear/strategy.h"
#include "parallel/strategy/strategy.h"

namespace periplus::launch {
namespace {

VerifySubject::Problem attention_problem(const std::string& strategy, const std::string& layout, const VerificationCase& kind,
                                         std::span<const std::int64_t> borders, int ranks) {
  const auto problem =
      std::make_shared<const AttentionProblem>(verification_problem(layout_kind_from_string(layout), kind, borders, ranks));
  const AttentionOptions how{.strategy = strategy};
  return {strategy::refusal(strategy::find_strategy(strategy), *problem, how), [=](Pass pass) { return make_plan(*problem, how, pass); },
          [=](Device device) { return compare_with_reference(*problem, how, device); }};
}

VerifySubject::Problem linear_problem(const std::string& strategy, const std::string& layout, const LinearVerificationCase& kind,
                                      std::span<const std::int64_t> borders, int ranks) {
  const auto problem =
      std::make_shared<const LinearAttentionProblem>(verification_problem(layout_kind_from_string(layout), kind, borders, ranks));
  const LinearAttentionOptions how{.strategy = strategy};
  return {strategy::linear::refusal(strategy::linear::find_strategy(strategy), *problem, how),
          [=](Pass pass) { return make_plan(*problem, how, pass); }, [=](Device) { return compare_with_reference(*problem, how); }};
}

}  // namespace

std::vector<VerifySubject> verify_subjects(const std::string& strategy, const std::string& layout) {
  const auto wanted = [](const std::string& choice, const std::string& name) { return choice == "all" || choice == name; };
  std::vector<VerifySubject> subjects;
  for (const std::string& name : strategy_names()) {
    for (const std::string& where : layout_names()) {
      if (!wanted(strategy, name) || !wanted(layout, where)) continue;
      for (const VerificationCase& kind : verification_cases()) {
        subjects.push_back({name, where, kind.name(), true, [=](std::span<const std::int64_t> borders, int ranks) {
                              return attention_problem(name, where, kind, borders, ranks);
                            }});
      }
    }
  }
  for (const std::string& name : linear_strategy_names()) {
    for (const std::string& where : linear_layout_names()) {
      if (!wanted(strategy, name) || !wanted(layout, where)) continue;
      for (const LinearVerificationCase& kind : linear_verification_cases()) {
        subjects.push_back({name, where, kind.name(), false, [=](std::span<const std::int64_t> borders, int ranks) {
                              return linear_problem(name, where, kind, borders, ranks);
                            }});
      }
    }
  }
  return subjects;
}

}  // namespace periplus::launch
