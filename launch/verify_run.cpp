#include "launch/verify_run.h"

#include <algorithm>
#include <chrono>
#include <cstdio>

#include <fmt/format.h>

#include "launch/attention_options.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

using Clock = std::chrono::steady_clock;

void complain(const std::string& subject, const std::string& what) {
  std::fputs(fmt::format("periplus verify: {}{}\n", subject, what).c_str(), stderr);
}

void prove(plan::Verifier& verifier, const plan::Plan& plan, Pass pass, const std::string& subject, Tally& tally) {
  const plan::Verdict verdict = verifier.verify(plan);
  ++tally.plans;
  tally.steps += verdict.steps;
  if (verdict.ok()) return;
  ++tally.failures;
  complain(subject, fmt::format(", {}: {}", pass == Pass::forward ? "forward" : "backward", verdict.failures.front()));
}

void check_numerically(const VerifySubject::Problem& problem, const VerifySubject::Strategy& how, Device device, const std::string& subject,
                       Tally& tally) {
  NumericCheck check;
  try {
    check = problem.compare(how, device);
  } catch (const BackendUnavailable& lack) {
    tally.unavailable = lack.what();
    return;
  }
  ++tally.numeric;
  tally.largest_error = std::max({tally.largest_error, check.forward_error, check.backward_error});
  if (check.ok()) return;
  ++tally.failures;
  complain(subject,
           fmt::format(": differs from the fp64 reference by {:.3g} forward, {:.3g} backward", check.forward_error, check.backward_error));
}

/// One problem for one row. Without a device there is no fp64 comparison.
void verify_problem(const VerifySubject::Problem& problem, int ranks, const std::string& documents, std::optional<Device> device,
                    Prover& prover, VerifyEntry& entry) {
  constexpr int kMostThreads = 8, kPasses = 2;
  const auto begin = Clock::now();
  Tally& tally = entry.tally;
  const std::string subject = fmt::format("{} {} {}, {} ranks, {}", entry.strategy(), entry.layout, entry.kind, ranks, documents);
  if (const std::string refusal = problem.refusal(entry.how); !refusal.empty()) {
    if (tally.refused == 0) tally.first_refusal = fmt::format("{}: {}", subject, refusal);
    tally.refused += kPasses;
  } else {
    for (const Pass pass : {Pass::forward, Pass::backward})
      prove(prover.verifier, problem.plan(entry.how, pass, prover.maker), pass, subject, tally);
    if (device && ranks <= kMostThreads) check_numerically(problem, entry.how, *device, subject, tally);
  }
  tally.seconds += std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace

void Tally::add(const Tally& other) {
  plans += other.plans;
  refused += other.refused;
  steps += other.steps;
  failures += other.failures;
  numeric += other.numeric;
  largest_error = std::max(largest_error, other.largest_error);
  seconds += other.seconds;
}

std::string VerifyEntry::strategy() const { return how.head_ranks > 0 ? fmt::format("{} {}x", how.name, how.head_ranks) : how.name; }

std::vector<VerifyEntry> verify_subject(const VerifySubject& subject, const std::set<int>& ranks, const std::string& told,
                                        std::optional<Device> device, Prover& prover) {
  std::vector<VerifyEntry> entries;
  for (const VerifySubject::Strategy& strategy : subject.strategies) entries.push_back({strategy, subject.layout, subject.kind, told});
  for (const int count : ranks) {
    for (const std::vector<std::int64_t>& borders : verification_documents(count)) {
      const VerifySubject::Problem problem = subject.problem(borders, count);
      const std::string documents = fmt::format("{} documents, {} tokens", borders.size() - 1, borders.back());
      for (VerifyEntry& entry : entries) verify_problem(problem, count, documents, device, prover, entry);
    }
  }
  return entries;
}

nlohmann::json to_json(const VerifyEntry& row) {
  const Tally& tally = row.tally;
  return {{"strategy", row.strategy()},
          {"layout", row.layout},
          {"problem", row.kind},
          {"ranks", row.ranks},
          {"plans", tally.plans},
          {"refused", tally.refused},
          {"first_refusal", tally.first_refusal},
          {"unavailable", tally.unavailable},
          {"steps", tally.steps},
          {"failures", tally.failures},
          {"numeric", tally.numeric},
          {"largest_error", tally.largest_error},
          {"seconds", tally.seconds}};
}

std::string verify_header(const VerifyWidths& widths) {
  return fmt::format("{:<18} {:<15} {:<{}} {:<{}} {:>7} {:>7} {:>9} {:>9} {:>8} {:>8}", "strategy", "layout", "problem", widths.kind,
                     "ranks", widths.ranks, "plans", "refused", "steps", "fp64 runs", "error", "seconds");
}

std::vector<std::string> verify_lines(const VerifyWidths& widths, const VerifyEntry& row) {
  const Tally& tally = row.tally;
  const std::string verdict = tally.failures > 0 ? fmt::format("{} FAILED", tally.failures) : tally.plans == 0 ? "refused" : "ok";
  std::vector<std::string> lines{fmt::format("{:<18} {:<15} {:<{}} {:<{}} {:>7} {:>7} {:>9} {:>9} {:>8.2g} {:>8.2f}  {}", row.strategy(),
                                             row.layout, row.kind, widths.kind, row.ranks, widths.ranks, tally.plans, tally.refused,
                                             tally.steps, tally.numeric, tally.largest_error, tally.seconds, verdict)};
  if (tally.refused > 0 && !tally.first_refusal.empty())
    lines.push_back(fmt::format("    {} refused; the first: {}", tally.refused, tally.first_refusal));
  if (!tally.unavailable.empty()) lines.push_back(fmt::format("    proven, but not compared with fp64: {}", tally.unavailable));
  return lines;
}

}  // namespace periplus::launch
