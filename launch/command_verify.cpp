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
#include "launch/numeric_check.h"
#include "launch/ranks.h"
#include "parallel/plan/verify.h"
#include "parallel/strategy/strategy.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

constexpr int kMostRanks = 4096;
using Clock = std::chrono::steady_clock;

struct VerifyOptions {
  std::string ranks = "1-16";
  std::string strategy = "all", layout = "all";
  int mask = 0;
  std::vector<std::int64_t> head_ranks;
  bool symbolic_only = false;
  std::string device = "cpu";
};

/// "1-16,64" -> 1..16, 64; a count that is named twice counts once.
std::set<int> parse_ranks(const std::string& text) {
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
  std::string first_refusal{};  ///< Of a row.

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

struct Row {
  std::string strategy, layout, mask;
};

/// Plans proven one after another, and where their verdicts go.
struct Prover {
  plan::Verifier verifier;
  void prove(const AttentionProblem& problem, const AttentionOptions& options, Pass pass, const std::string& subject, Tally& tally) {
    const plan::Verdict verdict = verifier.verify(make_plan(problem, options, pass));
    ++tally.plans;
    tally.steps += verdict.steps;
    if (verdict.ok()) return;
    ++tally.failures;
    std::fputs(
        fmt::format("periplus verify: {}, {}: {}\n", subject, pass == Pass::forward ? "forward" : "backward", verdict.failures.front())
            .c_str(),
        stderr);
  }
};

void check_numerically(const AttentionProblem& problem, const AttentionOptions& options, Device device, const std::string& subject,
                       Tally& tally) {
  const NumericCheck check = compare_with_reference(problem, options, device);
  ++tally.numeric;
  tally.largest_error = std::max({tally.largest_error, check.forward_error, check.backward_error});
  if (check.ok()) return;
  ++tally.failures;
  std::fputs(fmt::format("periplus verify: {}: differs from the fp64 reference by {:.3g} forward, {:.3g} backward\n", subject,
                         check.forward_error, check.backward_error)
                 .c_str(),
             stderr);
}

/// A row of the table as it fills.
struct Entry {
  Row row;
  AttentionOptions options;
  Tally tally;
};

/// One problem for one row. Without a device there is no fp64 comparison.
void verify_problem(const AttentionProblem& problem, std::optional<Device> device, Prover& prover, Entry& entry) {
  constexpr int kMostThreads = 8, kPasses = 2;
  const auto begin = Clock::now();
  Tally& tally = entry.tally;
  const int ranks = problem.layout.ranks();
  const AttentionOptions& options = entry.options;
  const std::string subject = fmt::format("{} {} {}, {} ranks, {} documents, {} tokens", entry.row.strategy, entry.row.layout,
                                          entry.row.mask, ranks, problem.layout.cu_seqlens().size() - 1, problem.layout.tokens());
  const std::string refusal = strategy::refusal(strategy::find_strategy(options.strategy), problem, options);
  if (!refusal.empty()) {
    if (tally.refused == 0) tally.first_refusal = fmt::format("{}: {}", subject, refusal);
    tally.refused += kPasses;
  } else {
    prover.prove(problem, options, Pass::forward, subject, tally);
    prover.prove(problem, options, Pass::backward, subject, tally);
    if (device && ranks <= kMostThreads) check_numerically(problem, options, *device, subject, tally);
  }
  tally.seconds += std::chrono::duration<double>(Clock::now() - begin).count();
}

std::vector<std::string> chosen(const std::string& choice, std::vector<std::string> all) {
  return choice == "all" ? all : std::vector<std::string>{choice};
}

/// What is proven on each problem: strategies, or the meshes of usp that `head_ranks` asks for.
std::vector<AttentionOptions> subjects(const VerifyOptions& options) {
  std::vector<AttentionOptions> all;
  for (const std::string& strategy : chosen(options.strategy, strategy_names())) {
    if (options.head_ranks.empty()) all.push_back({.strategy = strategy});
  }
  for (const std::int64_t heads : options.head_ranks) all.push_back({.strategy = "usp", .head_ranks = static_cast<int>(heads)});
  return all;
}

std::string name_of(const AttentionOptions& how) { return how.head_ranks > 0 ? fmt::format("usp {}x", how.head_ranks) : how.strategy; }

/// All subjects on one layout and mask. They follow each other on each problem, of which the proofs know more and more.
std::vector<Entry> verify_layout(const std::vector<AttentionOptions>& how, const std::string& layout, VerificationCase problem_case,
                                 const std::set<int>& ranks, std::optional<Device> device, Prover& prover) {
  // A head for every rank that shares heads, or the rest of the mesh would be idle.
  int most = 1;
  for (const AttentionOptions& options : how) most = std::max(most, options.head_ranks);
  const int times = (most + problem_case.q_heads - 1) / problem_case.q_heads;
  problem_case.q_heads *= times, problem_case.kv_heads *= times;
  std::vector<Entry> entries;
  for (const AttentionOptions& options : how) entries.push_back({{name_of(options), layout, problem_case.name()}, options, {}});
  for (const int count : ranks) {
    for (const std::vector<std::int64_t>& borders : verification_documents(count)) {
      const AttentionProblem problem = verification_problem(layout_kind_from_string(layout), problem_case, borders, count);
      for (Entry& entry : entries) verify_problem(problem, device, prover, entry);
    }
  }
  return entries;
}

/// The masks to try: all, or the one of that number.
std::vector<VerificationCase> chosen_masks(int number) {
  std::vector<VerificationCase> all = verification_cases();
  const int count = static_cast<int>(all.size());
  if (number < 0 || number > count) throw InvalidArgument(fmt::format("--mask: {}; use 1 to {}, or 0 for all masks", number, count));
  return number == 0 ? all : std::vector{all[static_cast<std::size_t>(number) - 1]};
}

void check_head_ranks(const VerifyOptions& options) {
  for (const std::int64_t heads : options.head_ranks) {
    if (heads < 1 || heads > kMostRanks) throw InvalidArgument(fmt::format("--head-ranks: {}; use 1 to {}", heads, kMostRanks));
  }
  if (!options.head_ranks.empty() && options.strategy != "usp")
    throw InvalidArgument(fmt::format("--head-ranks makes meshes of usp only; use --strategy usp, not {}", options.strategy));
}

nlohmann::json to_json(const Row& row, const Tally& tally) {
  return {{"strategy", row.strategy}, {"layout", row.layout},
          {"mask", row.mask},         {"plans", tally.plans},
          {"refused", tally.refused}, {"first_refusal", tally.first_refusal},
          {"steps", tally.steps},     {"failures", tally.failures},
          {"numeric", tally.numeric}, {"largest_error", tally.largest_error},
          {"seconds", tally.seconds}};
}

struct Widths {
  std::size_t mask = 4, ranks = 5;
};

std::string header(const Widths& widths) {
  return fmt::format("{:<10} {:<16} {:<{}} {:<{}} {:>7} {:>7} {:>9} {:>9} {:>8} {:>8}", "strategy", "layout", "mask", widths.mask, "ranks",
                     widths.ranks, "plans", "refused", "steps", "fp64 runs", "error", "seconds");
}

std::string line(const Widths& widths, const Row& row, const std::string& ranks, const Tally& tally) {
  const std::string verdict = tally.failures > 0 ? fmt::format("{} FAILED", tally.failures) : tally.plans == 0 ? "refused" : "ok";
  return fmt::format("{:<10} {:<16} {:<{}} {:<{}} {:>7} {:>7} {:>9} {:>9} {:>8.2g} {:>8.2f}  {}", row.strategy, row.layout, row.mask,
                     widths.mask, ranks, widths.ranks, tally.plans, tally.refused, tally.steps, tally.numeric, tally.largest_error,
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

}  // namespace

/// Plans come and go by the thousand: without this the C library returns their memory to the system each time.
void keep_freed_memory() {
  constexpr int kKept = 1 << 30, kLargestKept = 32 << 20;
  mallopt(M_TRIM_THRESHOLD, kKept);
  mallopt(M_MMAP_THRESHOLD, kLargestKept);
}

int verify_command(Arguments arguments) {
  OptionTable table("verify", "proves plans symbolically and checks small ones (up to 8 ranks) against fp64",
                    "periplus verify --ranks 1-16,64 --strategy all --layout all");
  VerifyOptions options;
  table.add({.key = "verify.ranks", .flag = "ranks", .target = &options.ranks, .value = "LIST", .help = "Numbers and ranges: 1-16,64."});
  add_strategy_and_layout(table, options.strategy, options.layout, {"all"});
  table.add({.key = "verify.mask",
             .flag = "mask",
             .target = &options.mask,
             .value = "N",
             .help = "Only this one of the masks, from 1 on; 0: all."});
  table.add({.key = "verify.head_ranks",
             .flag = "head-ranks",
             .target = &options.head_ranks,
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
  check_head_ranks(options);
  const std::vector<AttentionOptions> how = subjects(options);
  const std::vector<VerificationCase> masks = chosen_masks(options.mask);

  Widths widths{.ranks = std::max(Widths().ranks, options.ranks.size())};
  for (const VerificationCase& problem_case : verification_cases()) widths.mask = std::max(widths.mask, problem_case.name().size());
  say(table, header(widths));
  Tally total;
  nlohmann::json rows = nlohmann::json::array();
  keep_freed_memory();
  Prover prover;
  for (const std::string& layout : chosen(options.layout, layout_names())) {
    for (const VerificationCase& problem_case : masks) {
      for (const auto& [row, what, tally] : verify_layout(how, layout, problem_case, ranks, device, prover)) {
        say(table, line(widths, row, options.ranks, tally));
        if (tally.refused > 0) say(table, fmt::format("    {} refused; the first: {}", tally.refused, tally.first_refusal));
        rows.push_back(to_json(row, tally));
        total.add(tally);
      }
    }
  }
  say(table, line(widths, {"total", "", ""}, options.ranks, total));
  print_result(table, {{"ok", total.ok()},
                       {"plans", total.plans},
                       {"refused", total.refused},
                       {"failures", total.failures},
                       {"seconds", total.seconds},
                       {"rows", rows}});
  return total.ok() ? kOk : kFailedCheck;
}

}  // namespace periplus::launch
