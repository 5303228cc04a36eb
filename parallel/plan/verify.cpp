#include "parallel/plan/verify.h"

#include <utility>

#include <fmt/format.h>

#include "parallel/plan/verify_form.h"
#include "parallel/plan/verify_messages.h"
#include "parallel/plan/verify_provenance.h"
#include "parallel/plan/verify_races.h"
#include "parallel/plan/verify_states.h"

namespace periplus::plan {

struct Verifier::State {
  MessageCheck messages;
  RaceCheck races;
  ProvenanceMemory provenance;
};

Verifier::Verifier() : state_(std::make_unique<State>()) {}
Verifier::~Verifier() = default;

Verdict verify(const Plan& plan) { return Verifier().verify(plan); }

Verdict Verifier::verify(const Plan& plan) {
  constexpr std::size_t kMostFailures = 8;
  Verdict verdict;
  std::vector<std::string>& failures = verdict.failures;
  const int ranks = static_cast<int>(plan.programs.size());
  Proper proper;
  std::vector<std::string> races;
  MessageCheck& messages = state_->messages;
  messages.begin(plan.programs.size());
  state_->races.begin();
  if (ranks != plan.claim.layout.ranks())
    failures.push_back(fmt::format("{} programs for a layout of {} ranks", ranks, plan.claim.layout.ranks()));
  // One program after another, while it is in the cache.
  for (int r = 0; r < ranks && failures.size() < kMostFailures; ++r) {
    const Program& program = plan.programs[static_cast<std::size_t>(r)];
    if (program.rank != r) failures.push_back(fmt::format("program {} says it is of rank {}", r, program.rank));
    verdict.steps += static_cast<std::int64_t>(program.steps.size());
    check_form(program, ranks, proper, failures);
    if (!verdict.ok()) continue;
    messages.enter(program);
    if (races.size() < kMostFailures) state_->races.run(plan.programs, r, races);
  }
  if (!verdict.ok()) return verdict;
  messages.finish(plan, kMostFailures, failures);
  verdict.messages = messages.messages(), verdict.bytes_sent = messages.bytes_sent();
  failures.insert(failures.end(), races.begin(), races.end());
  if (!verdict.ok()) return verdict;
  std::string failure = plan.claim.computes == Computes::linear ? check_states(plan) : check_provenance(plan, state_->provenance);
  if (!failure.empty()) failures.push_back(std::move(failure));
  if (plan.claim.bytes_sent >= 0 && verdict.bytes_sent != plan.claim.bytes_sent) {
    failures.push_back(fmt::format("the plan sends {} bytes, its formula says {}", verdict.bytes_sent, plan.claim.bytes_sent));
  }
  return verdict;
}

}  // namespace periplus::plan
