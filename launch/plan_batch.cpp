// periplus plan batch: which devices work on which sequences of a global batch of unequal lengths.
#include <algorithm>
#include <cctype>
#include <charconv>
#include <chrono>
#include <map>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "launch/commands.h"
#include "launch/descriptions.h"
#include "launch/paths.h"
#include "launch/plan.h"
#include "launch/ranks.h"
#include "parallel/planner/planner.h"
#include "parallel/planner/prove.h"
#include "runtime/error.h"
#include "runtime/file.h"

namespace periplus::launch {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string lengths, model = "gpt-7b", machine = "a100x64";
  int devices = 0;
  std::int64_t max_length = 0;
  bool ulysses_only = false, prove = false;
  double deadline = 2;
  std::int64_t nodes = 20'000'000;
};

void add_options(OptionTable& table, Options& options) {
  table.add({.flag = "lengths", .target = &options.lengths, .value = "FILE", .help = "The batch: one length in tokens a line."});
  table.add({.flag = "devices", .target = &options.devices, .value = "N", .help = "Devices; 0: all of the machine.", .least = 0});
  table.add(
      {.flag = "model", .target = &options.model, .value = "NAME|FILE", .help = "Built-in model or a TOML file, as in examples/models."});
  table.add({.flag = "machine",
             .target = &options.machine,
             .value = "NAME|FILE",
             .help = "Built-in machine or a TOML file, as in examples/machines."});
  table.add({.flag = "max-length",
             .target = &options.max_length,
             .value = "N",
             .help = "Length limit of the training run, which a static degree must hold; 0: the longest of the batch.",
             .least = 0});
  table.add({.flag = "ulysses-only", .target = &options.ulysses_only, .help = "Groups exchange heads, as FlexSP's do."});
  table.add({.flag = "deadline", .target = &options.deadline, .value = "SECONDS", .help = "Then the best plan so far counts.", .least = 0});
  table.add({.flag = "prove", .target = &options.prove, .help = "Also finds the least time there is, for small batches."});
  table.add({.flag = "prove-nodes", .target = &options.nodes, .value = "N", .help = "Where --prove gives up.", .least = 1});
}

std::vector<std::int64_t> read_lengths(const std::string& path) {
  constexpr std::uint64_t kLargestFile = std::uint64_t{1} << 28;
  const std::string text = read_file(path, kLargestFile);
  std::vector<std::int64_t> lengths;
  int line = 0;
  for (std::size_t begin = 0; begin < text.size(); ++line) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view word(text.data() + begin, end - begin);
    begin = end + 1;
    while (!word.empty() && std::isspace(static_cast<unsigned char>(word.back())) != 0) word.remove_suffix(1);
    std::int64_t length = -1;
    const auto [stop, error] = std::from_chars(word.data(), word.data() + word.size(), length);
    if (error != std::errc{} || stop != word.data() + word.size() || length < 0)
      throw InvalidArgument(
          fmt::format("{}:{}: '{}' is not a length; each line is one whole number >= 0", path, line + 1, word.substr(0, 40)));
    lengths.push_back(length);
  }
  return lengths;
}

Json to_json(const planner::PlannedMicroBatch& micro_batch, const planner::CostModel& cost) {
  Json groups = Json::array();
  for (const planner::PlannedGroup& group : micro_batch.groups) {
    const planner::Kind& kind = cost.kinds()[static_cast<std::size_t>(group.kind)];
    Json json = {
        {"first_rank", group.first_rank}, {"degree", kind.degree}, {"strategy", to_string(kind.method)}, {"sequences", group.sequences}};
    if (kind.method == planner::Method::usp) json["head_ranks"] = kind.head_degree;
    groups.push_back(std::move(json));
  }
  return {{"groups", std::move(groups)}, {"makespan_s", micro_batch.seconds}};
}

/// "2 x 16 usp, 4 x 8 ulysses".
std::string describe(const planner::PlannedMicroBatch& micro_batch, const planner::CostModel& cost) {
  std::map<int, int, std::greater<>> counts;
  for (const planner::PlannedGroup& group : micro_batch.groups) ++counts[group.kind];
  std::vector<std::string> parts;
  for (const auto& [kind, count] : counts) {
    const planner::Kind& about = cost.kinds()[static_cast<std::size_t>(kind)];
    parts.push_back(fmt::format("{} x {}{}", count, about.degree, about.degree == 1 ? "" : fmt::format(" {}", to_string(about.method))));
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

void show(const OptionTable& table, const planner::BatchPlan& plan, const planner::CostModel& cost,
          const std::vector<std::int64_t>& lengths) {
  say(table, fmt::format("{:>11} {:>9} {:>10} {:>10} {:>11}  {}", "micro-batch", "sequences", "tokens", "longest", "makespan s", "groups"));
  for (std::size_t i = 0; i < plan.micro_batches.size(); ++i) {
    std::size_t count = 0;
    std::int64_t tokens = 0, longest = 0;
    for (const planner::PlannedGroup& group : plan.micro_batches[i].groups) {
      count += group.sequences.size();
      for (const int k : group.sequences) {
        tokens += lengths[static_cast<std::size_t>(k)];
        longest = std::max(longest, lengths[static_cast<std::size_t>(k)]);
      }
    }
    say(table, fmt::format("{:>11} {:>9} {:>10} {:>10} {:>11.3f}  {}", i, count, tokens, longest, plan.micro_batches[i].seconds,
                           describe(plan.micro_batches[i], cost)));
  }
}

std::string over(double seconds, double plan) {
  return seconds > 0 && plan > 0 ? fmt::format("{:.3f} s, {:.2f} x", seconds, seconds / plan) : std::string("cannot be done");
}

/// Adds what --prove found. Exit code: a plan or bound that the proof contradicts is a failed check.
int show_proof(const OptionTable& table, const planner::Batch& batch, const planner::BatchPlan& plan, const Options& options, Json& json) {
  const planner::Proof proof = planner::prove(batch, plan.seconds, options.nodes);
  json["optimal_s"] = proof.complete ? Json(proof.seconds) : Json(nullptr);
  json["prove_nodes"] = proof.nodes;
  if (!proof.complete) {
    say(table, fmt::format("not proven: {} nodes did not suffice; --prove is for about ten sequences", proof.nodes));
    return kOk;
  }
  const bool holds = plan.bound.seconds() <= proof.seconds * (1 + 1e-9);
  say(table, fmt::format("proven: no plan takes less than {:.6f} s; this one takes {:.6f}{}", proof.seconds, plan.seconds,
                         holds ? "" : fmt::format("; THE LOWER BOUND {:.6f} IS WRONG", plan.bound.seconds())));
  return holds ? kOk : kFailedCheck;
}

}  // namespace

int plan_batch(Arguments arguments) {
  OptionTable table("plan batch", "plans a global batch of sequences of unequal lengths",
                    "periplus plan batch --lengths FILE --devices 64 --model gpt-7b --machine a100x64 [options]");
  Options options;
  add_options(table, options);
  table.parse(arguments);
  if (answered(table)) return kOk;
  if (options.lengths.empty()) throw InvalidArgument("--lengths FILE is missing: one length in tokens a line");
  if (table.given("prove-nodes") && !options.prove) throw InvalidArgument("--prove-nodes has no effect without --prove");
  check_input_file("lengths", options.lengths);
  const std::vector<std::int64_t> lengths = read_lengths(options.lengths);
  const std::int64_t longest = lengths.empty() ? 0 : std::ranges::max(lengths);
  if (options.max_length > 0 && longest > options.max_length)
    throw InvalidArgument(fmt::format("a sequence of {} tokens exceeds --max-length {}", longest, options.max_length));
  planner::PlannerOptions how;
  how.deadline_seconds = options.deadline;
  planner::Planner planner(planner::CostModel(load_model(options.model), load_machine(options.machine),
                                              {.devices = options.devices, .ulysses_only = options.ulysses_only}),
                           how);
  const auto begin = std::chrono::steady_clock::now();
  const planner::BatchPlan plan = planner.plan(lengths);
  const double solve_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  const planner::Batch batch(planner.cost(), lengths);
  const planner::Baselines others = planner::baselines(batch, std::max(longest, options.max_length), how.search);
  show(table, plan, planner.cost(), lengths);
  say(table,
      fmt::format("{} sequences on {} devices: {:.3f} s; at least {:.3f} s, so at most {:.1f} % from optimal; found by {} in {:.1f} ms",
                  lengths.size(), planner.cost().devices(), plan.seconds, plan.bound.seconds(), plan.gap() * 100, plan.found_by, solve_ms));
  say(table, fmt::format("best static degree {}; best degree of this batch {}; packed first-fit {}, best-fit {}",
                         over(others.static_best, plan.seconds), over(others.adaptive, plan.seconds), over(others.first_fit, plan.seconds),
                         over(others.best_fit, plan.seconds)));
  Json json = {{"micro_batches", Json::array()}};
  for (const planner::PlannedMicroBatch& micro_batch : plan.micro_batches)
    json["micro_batches"].push_back(to_json(micro_batch, planner.cost()));
  json["makespan_s"] = plan.seconds, json["lower_bound_s"] = plan.bound.seconds(), json["gap"] = plan.gap();
  json["solve_ms"] = solve_ms, json["static_best_s"] = others.static_best, json["adaptive_s"] = others.adaptive;
  const int code = options.prove ? show_proof(table, batch, plan, options, json) : static_cast<int>(kOk);
  print_result(table, json);
  return code;
}

}  // namespace periplus::launch
