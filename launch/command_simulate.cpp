// periplus simulate: a training step on a machine that is not there.
#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "launch/attention_options.h"
#include "launch/bytes_text.h"
#include "launch/commands.h"
#include "launch/compare_run.h"
#include "launch/descriptions.h"
#include "launch/exam/report.h"
#include "launch/linear_options.h"
#include "launch/paths.h"
#include "launch/ranks.h"
#include "parallel/simulate/iteration.h"
#include "runtime/error.h"
#include "runtime/file.h"

namespace periplus::launch {
namespace {

using simulate::Iteration;
using simulate::RankShare;
using simulate::Training;

struct Options {
  std::string model = "llama3-8b", machine = "h100x8", kernels, layout = "zigzag", recompute = "but_attention", trace, reproduce, picture,
              compare;
  Training training;
};

std::vector<std::string> recompute_names() {
  std::vector<std::string> names;
  for (const simulate::Recompute recompute : simulate::kRecomputes) names.emplace_back(to_string(recompute));
  return names;
}

void add_options(OptionTable& table, Options& o) {
  table.add({.flag = "model", .target = &o.model, .value = "NAME|FILE", .help = "Built-in model or a TOML file, as in examples/models."});
  table.add(
      {.flag = "machine", .target = &o.machine, .value = "NAME|FILE", .help = "Built-in machine or a TOML file, as in examples/machines."});
  table.add({.flag = "kernels",
             .target = &o.kernels,
             .value = "NAME|FILE",
             .help = "Kernels as in examples/kernels; empty: those of the machine's file."});
  table.add({.flag = "tokens",
             .target = &o.training.tokens,
             .value = "N",
             .help = "Tokens of a micro-batch of one replica; needed unless --documents says them.",
             .least = 1});
  table.add({.flag = "documents",
             .target = &o.training.documents,
             .value = "A,B,...",
             .help = "Lengths that it is packed of; none: one document.",
             .least = 0});
  table.add({.flag = "ranks",
             .target = &o.training.context,
             .value = "N",
             .help = "Ranks that share a sequence.",
             .least = 1,
             .most = simulate::kMostContext});
  table.add({.flag = "replicas",
             .target = &o.training.replicas,
             .value = "N",
             .help = "Groups of such ranks, each with a sequence of its own.",
             .least = 1});
  table.add({.flag = "tensor",
             .target = &o.training.tensor,
             .value = "N",
             .help = "Devices that share matrices, as one rank of the above.",
             .least = 1});
  table.add({.flag = "micro-batches", .target = &o.training.micro_batches, .value = "N", .help = "Of an iteration.", .least = 1});
  table.add({.flag = "strategy",
             .target = &o.training.attention.strategy,
             .value = "NAME",
             .help = "Of softmax attention:",
             .choices = strategy_names()});
  table.add({.flag = "pieces", .target = &o.training.attention.pieces, .value = "N", .help = "Parts a block is cut into.", .least = 1});
  table.add({.flag = "head-ranks",
             .target = &o.training.attention.head_ranks,
             .value = "N",
             .help = "Ranks that share heads in usp; 0: the most.",
             .least = 0});
  table.add({.flag = "layout", .target = &o.layout, .value = "NAME", .help = "Which rank owns which tokens:", .choices = layout_names()});
  table.add({.flag = "linear-strategy",
             .target = &o.training.linear.strategy,
             .value = "NAME",
             .help = "Of linear attention:",
             .choices = linear_strategy_names()});
  table.add(
      {.flag = "recompute", .target = &o.recompute, .value = "NAME", .help = "What backward runs again:", .choices = recompute_names()});
  table.add({.flag = "zero-stage", .target = &o.training.zero, .value = "N", .help = "ZeRO stage.", .least = 0, .most = 3});
  table.add(
      {.flag = "offload-optimizer", .target = &o.training.optimizer_on_host, .help = "Master weights and moments take no device memory."});
  table.add({.flag = "offload-activations",
             .target = &o.training.checkpoints_on_host,
             .help = "What layers keep for backward goes to the host."});
  table.add({.flag = "tiled-ffn", .target = &o.training.tiled_ffn, .help = "The feed-forward part runs in tiles of rows."});
  table.add({.flag = "tiled-loss", .target = &o.training.tiled_loss, .help = "The loss runs in tiles of rows."});
  table.add({.flag = "trace", .target = &o.trace, .value = "FILE", .help = "Writes the timeline, for ui.perfetto.dev."});
}

double share_of_all(const Iteration& iteration, double RankShare::*part) {
  double sum = 0;
  for (const RankShare& rank : iteration.ranks) sum += rank.*part;
  return sum / (iteration.seconds * static_cast<double>(iteration.ranks.size()));
}

constexpr std::pair<const char*, double RankShare::*> kParts[] = {{"compute", &RankShare::compute},
                                                                  {"attention_wait", &RankShare::attention_wait},
                                                                  {"collective_wait", &RankShare::collective_wait},
                                                                  {"imbalance", &RankShare::imbalance},
                                                                  {"overhead", &RankShare::overhead}};

void show(const OptionTable& table, const simulate::Machine& machine, const Training& training, const Iteration& iteration) {
  const simulate::Memory& memory = iteration.memory;
  say(table, fmt::format("{:.4g} s an iteration, {:.5g} tokens/s, {:.1f} % of the peak of {} devices", iteration.seconds,
                         iteration.tokens_per_second(training), 100 * iteration.mfu(machine, training), training.devices()));
  say(table, fmt::format("attention of a layer: {:.4g} ms forward, {:.4g} ms backward", iteration.attention_forward_seconds * 1e3,
                         iteration.attention_backward_seconds * 1e3));
  std::string shares = "of a rank's time, mean:";
  for (const auto& [name, part] : kParts) shares += fmt::format(" {} {:.1f} %", name, 100 * std::max(0.0, share_of_all(iteration, part)));
  say(table, shares);
  say(table,
      fmt::format("memory {} of {}: states {}, kept for backward {}, layer at work {}, logits {}{}", bytes_text(memory.total()),
                  bytes_text(machine.memory_bytes), bytes_text(memory.states), bytes_text(memory.checkpoints), bytes_text(memory.working),
                  bytes_text(memory.logits), memory.host > 0 ? fmt::format("; in host memory {}", bytes_text(memory.host)) : ""));
  say(table, fmt::format("sent by the busiest rank: {} inside its node, {} out of it", bytes_text(iteration.link_bytes),
                         bytes_text(iteration.card_bytes)));
  if (memory.total() > machine.memory_bytes) say(table, "DOES NOT FIT into the memory of a device");
}

nlohmann::ordered_json to_json(const simulate::Machine& machine, const Training& training, const Iteration& iteration) {
  nlohmann::ordered_json json{{"seconds", iteration.seconds},
                              {"tokens_per_second", iteration.tokens_per_second(training)},
                              {"mfu", iteration.mfu(machine, training)},
                              {"attention_forward_seconds", iteration.attention_forward_seconds},
                              {"attention_backward_seconds", iteration.attention_backward_seconds},
                              {"memory_bytes", iteration.memory.total()},
                              {"fits", iteration.memory.total() <= machine.memory_bytes},
                              {"link_bytes", iteration.link_bytes},
                              {"card_bytes", iteration.card_bytes},
                              {"ranks", nlohmann::ordered_json::array()}};
  for (const RankShare& rank : iteration.ranks) {
    nlohmann::ordered_json parts;
    for (const auto& [name, part] : kParts) parts[std::string(name) + "_seconds"] = rank.*part;
    json["ranks"].push_back(std::move(parts));
  }
  return json;
}

/// The two modes that simulate other steps than those of the options.
void require_alone(const OptionTable& table, std::string_view mode, std::initializer_list<std::string_view> allowed) {
  for (const std::string& flag : table.given_flags()) {
    if (flag == mode || flag == "json" || std::ranges::find(allowed, flag) != allowed.end()) continue;
    throw InvalidArgument(fmt::format("--{} has no effect with --{}; leave one out", flag, mode));
  }
}

}  // namespace

int simulate_command(Arguments arguments) {
  OptionTable table("simulate", "a training step on a machine that need not be there",
                    "periplus simulate --model llama3-8b --machine h100x8 --tokens 65536 --ranks 8 [options]");
  Options options;
  add_options(table, options);
  table.add({.flag = "reproduce",
             .target = &options.reproduce,
             .value = "all|S1,S7...",
             .help = "Instead: rows of published figures, ours beside theirs."});
  table.add({.flag = "picture",
             .target = &options.picture,
             .value = "FOLDER",
             .help = "With --reproduce: where exam.svg, flexsp.svg, lasp2.svg go."});
  table.add({.flag = "compare",
             .target = &options.compare,
             .value = "FOLDER",
             .help = "Instead: steps of a run of periplus train beside what --machine would take."});
  table.parse(arguments);
  if (answered(table)) return kOk;
  if (table.given("reproduce")) require_alone(table, "reproduce", {"picture"});
  if (table.given("compare")) require_alone(table, "compare", {"machine", "kernels"});
  if (!options.trace.empty()) check_output_file("trace", options.trace);
  if (table.given("reproduce")) return exam::run_exam(table, options.reproduce, options.picture);
  if (table.given("compare")) return compare_with_run(table, options.compare, load_simulated_machine(options.machine, options.kernels));
  if (table.given("picture")) throw InvalidArgument("--picture goes with --reproduce");
  if (!table.given("tokens") && !table.given("documents"))
    throw InvalidArgument("--tokens N or --documents A,B,... is missing: what a step trains on");
  options.training.layout = layout_kind_from_string(options.layout);
  options.training.recompute = *std::ranges::find(simulate::kRecomputes, options.recompute, simulate::to_string);
  if (options.training.tokens == 0) {
    for (const std::int64_t length : options.training.documents) options.training.tokens += length;
  }
  const simulate::Shape shape = load_shape(options.model);
  if (table.given("linear-strategy") && shape.pattern.find('L') == std::string::npos)
    throw InvalidArgument(fmt::format("{} has no linear layers; leave --linear-strategy out", shape.name));
  const simulate::Machine machine = load_simulated_machine(options.machine, options.kernels);
  if (options.training.checkpoints_on_host && machine.host_bytes_per_second <= 0)
    throw InvalidArgument(fmt::format("machine {} has no links.host_bytes_per_second, so nothing can go to the host", machine.name));
  const Iteration iteration = simulate::simulate_iteration(shape, machine, options.training);
  show(table, machine, options.training, iteration);
  if (!options.trace.empty()) {
    std::vector<const Tracer*> traces;
    for (const Tracer& trace : iteration.traces) traces.push_back(&trace);
    write_file_atomically(options.trace, to_chrome_trace(traces));
  }
  print_result(table, to_json(machine, options.training, iteration));
  return kOk;
}

}  // namespace periplus::launch
