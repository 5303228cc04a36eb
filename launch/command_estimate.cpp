// periplus estimate: will it fit, how fast, and which way.
#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "launch/bytes_text.h"
#include "launch/commands.h"
#include "launch/descriptions.h"
#include "launch/ranks.h"
#include "parallel/simulate/estimate.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

using simulate::Candidate;

std::string strategy_of(const simulate::Shape& shape, const simulate::Training& training) {
  if (training.context == 1) return "one device";
  if (shape.pattern.find('S') == std::string::npos) return training.linear.strategy;
  const AttentionOptions& how = training.attention;
  return how.head_ranks > 0 ? fmt::format("{}, {} for heads", how.strategy, how.head_ranks) : how.strategy;
}

std::string_view on_host(const simulate::Training& training) {
  if (training.optimizer_on_host) return "act. + optim.";
  return training.checkpoints_on_host ? "activations" : "nothing";
}

void show(const OptionTable& table, const simulate::Shape& shape, const simulate::Machine& machine, const Candidate& c) {
  say(table,
      fmt::format("{:<20} {:>7} {:>8} {:>5} {:<13} {:<13} {:>10.4g} {:>11.5g} {:>7.1f} {:>10} {:>8.1f}", strategy_of(shape, c.training),
                  c.training.context, c.training.replicas, c.training.zero, to_string(c.training.recompute), on_host(c.training),
                  c.iteration.seconds, c.iteration.tokens_per_second(c.training), 100 * c.iteration.mfu(machine, c.training),
                  bytes_text(c.iteration.memory.total()), 100 * std::max(0.0, c.iteration.ranks[0].attention_wait) / c.iteration.seconds));
}

nlohmann::ordered_json to_json(const simulate::Shape& shape, const simulate::Machine& machine, const Candidate& c) {
  return {{"strategy", c.training.context == 1                        ? "local"
                       : shape.pattern.find('S') == std::string::npos ? c.training.linear.strategy
                                                                      : c.training.attention.strategy},
          {"head_ranks", c.training.attention.head_ranks},
          {"ranks", c.training.context},
          {"replicas", c.training.replicas},
          {"zero_stage", c.training.zero},
          {"recompute", to_string(c.training.recompute)},
          {"offload_activations", c.training.checkpoints_on_host},
          {"offload_optimizer", c.training.optimizer_on_host},
          {"host_bytes", c.iteration.memory.host},
          {"seconds", c.iteration.seconds},
          {"tokens_per_second", c.iteration.tokens_per_second(c.training)},
          {"mfu", c.iteration.mfu(machine, c.training)},
          {"memory_bytes", c.iteration.memory.total()}};
}

}  // namespace

int estimate_command(Arguments arguments) {
  OptionTable table("estimate", "whether a model fits a machine, how fast it trains there, and with which strategy; no GPU needed",
                    "periplus estimate --model llama3-8b --machine h100x8 --context 131072 [options]");
  std::string model = "llama3-8b", machine_name = "h100x8", kernels;
  simulate::EstimateOptions options;
  table.add({.flag = "model", .target = &model, .value = "NAME|FILE", .help = "Built-in model or a TOML file, as in examples/models."});
  table.add({.flag = "machine",
             .target = &machine_name,
             .value = "NAME|FILE",
             .help = "Built-in machine or a TOML file, as in examples/machines."});
  table.add({.flag = "kernels",
             .target = &kernels,
             .value = "NAME|FILE",
             .help = "Kernels as in examples/kernels; empty: those of the machine's file."});
  table.add({.flag = "context", .target = &options.tokens, .value = "N", .help = "Tokens of a sequence; needed.", .least = 1});
  table.add({.flag = "devices", .target = &options.devices, .value = "N", .help = "Devices; 0: all of the machine.", .least = 0});
  table.add({.flag = "micro-batches", .target = &options.micro_batches, .value = "N", .help = "Of an iteration.", .least = 1});
  table.parse(arguments);
  if (answered(table)) return kOk;
  if (!table.given("context")) throw InvalidArgument("--context N is missing: tokens of a sequence");
  const simulate::Shape shape = load_shape(model);
  const simulate::Machine machine = load_simulated_machine(machine_name, kernels);
  const simulate::Estimate estimate = simulate::estimate(shape, machine, options);
  nlohmann::ordered_json json{{"fits", !estimate.candidates.empty()},
                              {"candidates", nlohmann::ordered_json::array()},
                              {"longest_tokens", estimate.longest},
                              {"longest_tokens_with_host", estimate.longest_on_host}};
  if (estimate.candidates.empty()) {
    say(table, fmt::format("{} with {} tokens does not fit {}", shape.name, options.tokens, machine.name));
  } else {
    say(table, fmt::format("{:<20} {:>7} {:>8} {:>5} {:<13} {:<13} {:>10} {:>11} {:>7} {:>10} {:>8}", "strategy", "ranks", "replicas",
                           "ZeRO", "recompute", "on host", "s / step", "tokens/s", "MFU %", "memory", "waits %"));
  }
  for (const Candidate& candidate : estimate.candidates) {
    show(table, shape, machine, candidate);
    json["candidates"].push_back(to_json(shape, machine, candidate));
  }
  say(table,
      fmt::format("longest sequence over all devices: {} tokens in {} each{}", estimate.longest, bytes_text(machine.memory_bytes),
                  estimate.longest_on_host > 0 ? fmt::format("; {} with activations and optimizer on the host, {} there for each device",
                                                             estimate.longest_on_host, bytes_text(estimate.host_bytes))
                                               : ""));
  print_result(table, json);
  return estimate.candidates.empty() ? kFailedCheck : kOk;
}

}  // namespace periplus::launch
