#include "parallel/choose.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "parallel/attention.h"
#include "parallel/plan/ops.h"
#include "parallel/simulate/simulate.h"
#include "parallel/strategy/strategy.h"
#include "runtime/error.h"

namespace periplus {
namespace {

/// Every way to run the problem that no strategy refuses, in the order of the table.
std::vector<AttentionOptions> candidates(const AttentionProblem& problem, const AttentionOptions& options) {
  constexpr int kMostPieces = 4;
  std::vector<AttentionOptions> all;
  for (const strategy::Strategy& strategy : strategy::strategies()) {
    AttentionOptions candidate{.strategy = std::string(strategy.name)};
    if ((strategy.knobs & strategy::kRanksPerNode) != 0) candidate.ranks_per_node = options.ranks_per_node;
    const auto add = [&] {
      if (strategy::refusal(strategy, problem, candidate).empty()) all.push_back(candidate);
    };
    const std::size_t before = all.size();
    add();
    if (all.size() == before || (strategy.knobs & strategy::kPieces) == 0) continue;
    for (candidate.pieces = kMostPieces; candidate.pieces > 1 && all.size() == before + 1; candidate.pieces /= 2) add();
  }
  return all;
}

double simulated_seconds(const AttentionProblem& problem, const AttentionOptions& options, const Machine& machine, int ranks_per_node) {
  double seconds = 0;
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const plan::Plan plan = make_plan(problem, options, pass);
    const auto compute = [&](const plan::Program& program, const plan::Step& step) { return modelled_seconds(machine, program, step); };
    seconds += simulate::simulate(plan, {compute, links_of(machine, ranks_per_node)}).makespan;
  }
  return seconds;
}

void check(const Machine& machine) {
  const std::pair<const char*, double> rates[] = {{"rank_gflops", machine.rank_gflops},
                                                  {"memory_gbytes", machine.memory_gbytes},
                                                  {"link_gbytes", machine.link_gbytes},
                                                  {"node_gbytes", machine.node_gbytes}};
  for (const auto& [name, rate] : rates) {
    if (!(rate > 0) || !std::isfinite(rate))
      throw InvalidArgument(fmt::format("attention: the machine's {} is {}; strategy auto needs a number above 0", name, rate));
  }
  for (const double latency : {machine.link_latency_us, machine.node_latency_us}) {
    if (!(latency >= 0) || !std::isfinite(latency))
      throw InvalidArgument(fmt::format("attention: a latency of {} us; strategy auto needs a number from 0 on", latency));
  }
}

std::string describe(const AttentionOptions& options) {
  return options.strategy + (options.pieces > 1 ? fmt::format(" in {} pieces", options.pieces) : "");
}

}  // namespace

double modelled_seconds(const Machine& machine, const plan::Program& program, const plan::Step& step) {
  return std::max(plan::flops(program, step) / (machine.rank_gflops * 1e9),
                  static_cast<double>(plan::bytes(program, step)) / (machine.memory_gbytes * 1e9));
}

comm::Links links_of(const Machine& machine, int ranks_per_node) {
  const comm::Sharing sharing = comm::sharing_from_string(machine.link_sharing);
  return {{machine.link_gbytes * 1e9, machine.link_latency_us * 1e-6, sharing},
          {machine.node_gbytes * 1e9, machine.node_latency_us * 1e-6, sharing},
          ranks_per_node};
}

void use_machine(AttentionOptions& options, const simulate::Machine& machine, int ranks, std::int64_t rows) {
  if (machine.devices < ranks)
    throw InvalidArgument(
        fmt::format("attention: strategy auto for {} ranks: machine {} has {} devices", ranks, machine.name, machine.devices));
  const auto length = static_cast<double>(std::max<std::int64_t>(rows, 1));
  constexpr double kForward = 4, kBackward = 10;  // flops of a pair and element
  const simulate::Kernels& kernels = machine.kernels;
  const double seconds = kForward / kernels.forward.rate(length, 1) + kBackward / kernels.backward.rate(length, 1);
  const comm::Pacing& inside = machine.links.inside;
  const comm::Pacing& between = machine.devices > machine.devices_per_node ? machine.links.between : inside;
  options.machine = {.rank_gflops = (kForward + kBackward) / seconds * 1e-9,
                     .memory_gbytes = kernels.memory_bytes_per_second * 1e-9,
                     .link_gbytes = inside.bytes_per_second * 1e-9,
                     .link_latency_us = inside.latency_seconds * 1e6,
                     .node_gbytes = between.bytes_per_second * 1e-9,
                     .node_latency_us = between.latency_seconds * 1e6,
                     .link_sharing = std::string(to_string(inside.sharing))};
  if (options.ranks_per_node == 0 && machine.devices_per_node < ranks) options.ranks_per_node = machine.devices_per_node;
}

Choice choose_strategy(const AttentionProblem& problem, const AttentionOptions& options) {
  const AttentionOptions unset;
  if (options.pieces != unset.pieces || options.stages != unset.stages || options.head_ranks != unset.head_ranks ||
      options.placement != unset.placement) {
    throw InvalidArgument("attention: strategy auto chooses pieces, stages, head_ranks and placement itself; leave them out");
  }
  check(options.machine);
  std::vector<Choice> choices;
  for (const AttentionOptions& candidate : candidates(problem, options))
    choices.push_back({candidate, simulated_seconds(problem, candidate, options.machine, options.ranks_per_node), {}});
  if (choices.empty()) throw InvalidArgument("auto: no strategy can plan this problem");
  std::ranges::stable_sort(choices, {}, &Choice::seconds);
  Choice best = choices.front();
  const auto time = [](double seconds) { return seconds < 1 ? fmt::format("{:.3g} ms", seconds * 1e3) : fmt::format("{:.3g} s", seconds); };
  best.why = fmt::format("{}: {} modelled, forward and backward", describe(best.options), time(best.seconds));
  const auto other = std::ranges::find_if(choices, [&](const Choice& c) { return c.options.strategy != best.options.strategy; });
  if (other != choices.end()) best.why += fmt::format("; next {} with {}", describe(other->options), time(other->seconds));
  return best;
}

AttentionOptions resolved(const AttentionProblem& problem, const AttentionOptions& options) {
  return options.strategy == "auto" ? choose_strategy(problem, options).options : options;
}

}  // namespace periplus
