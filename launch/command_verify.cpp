// periplus verify: proves the plans of many problems, and runs small ones in fp64 against the one-rank reference.
#include <algorithm>
#include <chrono>
#include <optional>
#include <set>

#include <fmt/format.h>
#include <malloc.h>
#include <nlohmann/json.hpp>

#include "launch/attention_options.h"
#include "launch/commands.h"
#include "launch/devices.h"
#include "launch/linear_options.h"
#include "launch/ranks.h"
#include "launch/verify_subjects.h"
#include "parallel/plan/verify.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

using Clock = std::chrono::steady_clock;

struct VerifyOptions {
  std::string ranks = "1-16";
  VerifySelection selection;
  bool symbolic_only = false;
  std::string device = "cpu";
};

/// "1-16,64" -> 1..16, 64; a count that is named twice counts once.
std::set<int> parse_ranks(const std::string& text) {
  constexpr int kMostRanks = 4096;
  std::set<int> ranks;
  std::size_t position = 0;
  const auto number = [&] {
    std::size_t used = 0;
    int value = 0;
    try {
      if (position < text.size() && std::isdigit(static_cast<unsigned char>(text[position])) != 0)
        value = std::stoi(text.substr(position), &used);
    } catch (const std::out_of_range&) {
    }
    if (value < 1 || value > kMostRanks) {
      throw InvalidArgument(
          fmt::format("--ranks: '{}' is not a list of numbers and ranges between 1 and {}, such as 1-16,64", text, kMostRanks));
    }
    position += used;
    return value;
  };
  for (;;) {
    const int first = number();
    int last = first;
    if (position < text.size() && text[position] == '-') ++position, last = number();
    if (last < first)
      throw InvalidArgument(fmt::format("--ranks: '{}': {}-{} runs backwards; write {}-{}", text, first, last, last, first));
    for (int value = first; value <= last; ++value) ranks.insert(value);
    if (position == text.size()) return ranks;
    if (text[position] != ',') position = text.size();  // which is no number, so the next round complains
    ++position;
  }
}

struct Tally {
  std::int64_t plans = 0, refused = 0, steps = 0, failures = 0;
  int numeric = 0;
  double largest_error = 0, seconds = 0;
  // Of a row.
  std::string first_refusal{};
  std::string unavailable{};  ///< Why a device was not asked for the fp64 comparison: it lacks kernels.

  bool ok() const noexcept { return failures == 0 && plans > 0; }
  void add(const Tally& other) {
    plans += other.plans;
    refused += other.refused;
    steps += other.steps;
    failures += other.failures;
    numeric += other.numeric;
    largest_error = std::max(largest_error, other.largest_error);
    seconds += other.seconds;
  }
};

void complain(const std::string& subject, const std::string& what) {
  std::fputs(fmt::format("periplus verify: {}{}\n", subject, what).c_str(), stderr);
}

/// Plans made and proven one after another, and where their verdicts go.
struct Prover {
  plan::PlanMaker maker;
  plan::Verifier verifier;
  void prove(const plan::Plan& plan, Pass pass, const std::string& subject, Tally& tally) {
    const plan::Verdict verdict = verifier.verify(plan);
    ++tally.plans;
    tally.steps += verdict.steps;
    if (verdict.ok()) return;
    ++tally.failures;
    complain(subject, fmt::format(", {}: {}", pass == Pass::forward ? "forward" : "backward", verdict.failures.front()));
  }
};

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

/// A row of the table as it fills.
struct Entry {
  VerifySubject::Strategy how;
  std::string layout, kind;
  Tally tally{};
  std::string strategy() const { return how.head_ranks > 0 ? fmt::format("{} {}x", how.name, how.head_ranks) : how.name; }
};

/// One problem for one row. Without a device there is no fp64 comparison.
void verify_problem(const VerifySubject::Problem& problem, int ranks, const std::string& documents, std::optional<Device> device,
                    Prover& prover, Entry& entry) {
  constexpr int kMostThreads = 8, kPasses = 2;
  const auto begin = Clock::now();
  Tally& tally = entry.tally;
  const std::string subject = fmt::format("{} {} {}, {} ranks, {}", entry.strategy(), entry.layout, entry.kind, ranks, documents);
  if (const std::string refusal = problem.refusal(entry.how); !refusal.empty()) {
    if (tally.refused == 0) tally.first_refusal = fmt::format("{}: {}", subject, refusal);
    tally.refused += kPasses;
  } else {
    for (const Pass pass : {Pass::forward, Pass::backward}) prover.prove(problem.plan(entry.how, pass, prover.maker), pass, subject, tally);
    if (device && ranks <= kMostThreads) check_numerically(problem, entry.how, *device, subject, tally);
  }
  tally.seconds += std::chrono::duration<double>(Clock::now() - begin).count();
}

/// All strategies of a subject. They follow each other on each problem, of which the proofs know more and more.
std::vector<Entry> verify_subject(const VerifySubject& subject, const std::set<int>& ranks, std::optional<Device> device, Prover& prover) {
  std::vector<Entry> entries;
  for (const VerifySubject::Strategy& strategy : subject.strategies) entries.push_back({strategy, subject.layout, subject.kind});
  for (const int count : ranks) {
    for (const std::vector<std::int64_t>& borders : verification_documents(count)) {
      const VerifySubject::Problem problem = subject.problem(borders, count);
      const std::string documents = fmt::format("{} documents, {} tokens", borders.size() - 1, borders.back());
      for (Entry& entry : entries) verify_problem(problem, count, documents, device, prover, entry);
    }
  }
  return entries;
}

nlohmann::json to_json(const Entry& row) {
  const Tally& tally = row.tally;
  return {{"strategy", row.strategy()},
          {"layout", row.layout},
          {"problem", row.kind},
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

struct Widths {
  std::size_t kind = 7, ranks = 5;
};

std::string header(const Widths& widths) {
  return fmt::format("{:<10} {:<16} {:<{}} {:<{}} {:>7} {:>7} {:>9} {:>9} {:>8} {:>8}", "strategy", "layout", "problem", widths.kind,
                     "ranks", widths.ranks, "plans", "refused", "steps", "fp64 runs", "error", "seconds");
}

std::string line(const Widths& widths, const Entry& row, const std::string& ranks) {
  const Tally& tally = row.tally;
  const std::string verdict = tally.failures > 0 ? fmt::format("{} FAILED", tally.failures) : tally.plans == 0 ? "refused" : "ok";
  return fmt::format("{:<10} {:<16} {:<{}} {:<{}} {:>7} {:>7} {:>9} {:>9} {:>8.2g} {:>8.2f}  {}", row.strategy(), row.layout, row.kind,
                     widths.kind, ranks, widths.ranks, tally.plans, tally.refused, tally.steps, tally.numeric, tally.largest_error,
                     tally.seconds, verdict);
}

std::optional<Device> device_of(const VerifyOptions& options, const OptionTable& table) {
  const DeviceRequest request = parse_device(options.device);
  if (options.symbolic_only) {
    if (table.given("device")) throw InvalidArgument("--device has no effect with --symbolic-only, which runs nothing; leave one out");
    return {};
  }
  require_device(request);
  return shared_device(request);
}

/// Plans come and go by the thousand: without this the C library returns their memory to the system each time.
void keep_freed_memory() {
  constexpr int kKept = 1 << 30, kLargestKept = 32 << 20;
  mallopt(M_TRIM_THRESHOLD, kKept);
  mallopt(M_MMAP_THRESHOLD, kLargestKept);
}

}  // namespace

int verify_command(Arguments arguments) {
  OptionTable table("verify", "proves plans symbolically and checks small ones (up to 8 ranks) against fp64",
                    "periplus verify --ranks 1-16,64 --strategy all --layout all");
  VerifyOptions options;
  table.add({.key = "verify.ranks", .flag = "ranks", .target = &options.ranks, .value = "LIST", .help = "Numbers and ranges: 1-16,64."});
  std::vector<std::string> more = linear_strategy_names();
  more.emplace_back("all");
  add_strategy_and_layout(table, options.selection.strategy, options.selection.layout, more);
  table.add({.key = "verify.mask",
             .flag = "mask",
             .target = &options.selection.mask,
             .value = "N",
             .help = "Only this one of the softmax masks, from 1 on; 0: all, and the linear strategies."});
  table.add({.key = "verify.head_ranks",
             .flag = "head-ranks",
             .target = &options.selection.head_ranks,
             .value = "A,B,...",
             .help = "usp: the meshes to prove, by the ranks that share heads, with at least a head each."});
  table.add({.key = "verify.symbolic_only",
             .flag = "symbolic-only",
             .target = &options.symbolic_only,
             .help = "Leaves the fp64 comparison out."});
  table.add({.key = "parallel.device",
             .flag = "device",
             .target = &options.device,
             .value = "NAME",
             .help = "Where the fp64 comparison runs the plans: cpu, cuda or cuda:N, which all ranks share."});
  table.parse(arguments);
  if (answered(table)) return kOk;
  const std::set<int> ranks = parse_ranks(options.ranks);
  const std::optional<Device> device = device_of(options, table);

  const std::vector<VerifySubject> subjects = verify_subjects(options.selection);
  Widths widths{.ranks = std::max(Widths().ranks, options.ranks.size())};
  for (const VerifySubject& subject : subjects) widths.kind = std::max(widths.kind, subject.kind.size());
  say(table, header(widths));
  Entry total;
  total.how.name = "total";
  keep_freed_memory();
  Prover prover;
  nlohmann::json rows = nlohmann::json::array();
  for (const VerifySubject& subject : subjects) {
    for (const Entry& entry : verify_subject(subject, ranks, device, prover)) {
      const Tally& tally = entry.tally;
      say(table, line(widths, entry, options.ranks));
      if (tally.refused > 0) say(table, fmt::format("    {} refused; the first: {}", tally.refused, tally.first_refusal));
      if (!tally.unavailable.empty()) say(table, fmt::format("    proven, but not compared with fp64: {}", tally.unavailable));
      rows.push_back(to_json(entry));
      total.tally.add(tally);
    }
  }
  say(table, line(widths, total, options.ranks));
  print_result(table, {{"ok", total.tally.ok()},
                       {"plans", total.tally.plans},
                       {"refused", total.tally.refused},
                       {"failures", total.tally.failures},
                       {"seconds", total.tally.seconds},
                       {"rows", rows}});
  return total.tally.ok() ? kOk : kFailedCheck;
}

}  // namespace periplus::launch
