// periplus bench strategies: all strategies side by side on one problem, over paced links and with kernels that sleep for
// the time that a machine's numbers give them.
#include <algorithm>
#include <filesystem>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "launch/attention_options.h"
#include "launch/bench/paced_run.h"
#include "launch/bench/statistics.h"
#include "launch/bench/suites.h"
#include "launch/bytes_text.h"
#include "launch/commands.h"
#include "launch/ranks.h"
#include "parallel/attention.h"
#include "parallel/balanced_layout.h"
#include "parallel/choose.h"
#include "parallel/simulate/simulate.h"
#include "parallel/strategy/strategy.h"
#include "runtime/error.h"
#include "runtime/file.h"

namespace periplus::launch::bench {
namespace {

struct Options {
  int ranks = 8, heads = 16, kv_heads = 8, head_size = 64, pieces = 4, samples = 3;
  std::int64_t tokens = 16384;
  std::vector<std::int64_t> documents;
  std::string layout = "zigzag";
  std::string trace;
  int ranks_per_node = 0;
  MaskOptions mask;
  Machine machine{.rank_gflops = 100, .memory_gbytes = 10, .link_gbytes = 0.25, .link_latency_us = 50};
};

/// Figures of the machine that is played.
void add_machine_options(OptionTable& table, Machine& machine) {
  constexpr double kSlowest = 1e-6;  // a rate of 0 would never finish
  const auto number = [&](const char* flag, double* target, const char* help, double least) {
    std::string key = flag;
    std::ranges::replace(key, '-', '_');
    table.add({.key = "machine." + key, .flag = flag, .target = target, .value = "X", .help = help, .least = least});
  };
  number("rank-gflops", &machine.rank_gflops, "Gflop/s of a rank's attention kernels.", kSlowest);
  number("memory-gbytes", &machine.memory_gbytes, "GB/s of a rank's copies and sums.", kSlowest);
  number("link-gbytes", &machine.link_gbytes, "GB/s of a link between ranks.", kSlowest);
  number("link-latency-us", &machine.link_latency_us, "Its latency, microseconds.", 0);
  number("node-gbytes", &machine.node_gbytes, "GB/s of a link between nodes.", kSlowest);
  number("node-latency-us", &machine.node_latency_us, "Its latency, microseconds.", 0);
  table.add({.key = "machine.link_sharing",
             .flag = "link-sharing",
             .target = &machine.link_sharing,
             .value = "NAME",
             .help = "Messages that share a link: those of a pair of ranks, or of a port:",
             .choices = {"pair", "port", "half_duplex"}});
}

void add_options(OptionTable& table, Options& options) {
  table.add({.flag = "ranks", .target = &options.ranks, .value = "N", .help = "Ranks, which are threads.", .least = 1, .most = 64});
  table.add(
      {.flag = "layout", .target = &options.layout, .value = "NAME", .help = "Which rank owns which tokens:", .choices = layout_names()});
  table.add({.flag = "tokens", .target = &options.tokens, .value = "N", .help = "Tokens, if no --documents are given.", .least = 1});
  table.add({.flag = "documents", .target = &options.documents, .value = "A,B,...", .help = "Lengths of packed documents.", .least = 0});
  table.add({.flag = "heads", .target = &options.heads, .value = "N", .help = "Query heads.", .least = 1});
  table.add({.flag = "kv-heads", .target = &options.kv_heads, .value = "N", .help = "Key/value heads; divides heads.", .least = 1});
  table.add({.flag = "head-size", .target = &options.head_size, .value = "N", .help = "Width of a head.", .least = 1});
  table.add({.flag = "pieces", .target = &options.pieces, .value = "N", .help = "Pieces, or as many as a strategy can.", .least = 1});
  table.add(
      {.flag = "ranks-per-node", .target = &options.ranks_per_node, .value = "N", .help = "Ranks of a node; 0: one node.", .least = 0});
  add_mask_options(table, options.mask);
  add_machine_options(table, options.machine);
  table.add({.flag = "samples", .target = &options.samples, .value = "N", .help = "Runs of each; the median counts.", .least = 1});
  table.add({.flag = "trace",
             .target = &options.trace,
             .value = "FOLDER",
             .help = "Writes STRATEGY.PASS.measured.json and .simulated.json there, for ui.perfetto.dev."});
}

AttentionProblem make_problem(const Options& options, const OptionTable& table) {
  if (options.heads % options.kv_heads != 0)
    throw InvalidArgument(fmt::format("--heads {} is not a multiple of --kv-heads {}", options.heads, options.kv_heads));
  if (table.given("tokens") && !options.documents.empty())
    throw InvalidArgument("--tokens and --documents contradict each other; choose one");
  std::vector<std::int64_t> borders{0};
  for (const std::int64_t length : options.documents) borders.push_back(borders.back() + length);
  if (options.documents.empty()) borders.push_back(options.tokens);
  const Mask mask(mask_spec(options.mask, table), borders);
  AttentionProblem problem{.layout = make_layout(layout_kind_from_string(options.layout), options.ranks, mask), .mask = mask};
  problem.q_heads = options.heads, problem.kv_heads = options.kv_heads, problem.head_size = options.head_size;
  problem.dtype = DType::bf16;
  return problem;
}

AttentionOptions make_options(const Options& options, const strategy::Strategy& strategy, const AttentionProblem& problem) {
  AttentionOptions how{.strategy = std::string(strategy.name)};
  if ((strategy.knobs & strategy::kRanksPerNode) != 0) how.ranks_per_node = options.ranks_per_node;
  if ((strategy.knobs & strategy::kPieces) == 0) return how;
  for (how.pieces = options.pieces; how.pieces > 1 && !strategy::refusal(strategy, problem, how).empty();) --how.pieces;
  return how;
}

/// One pass of one strategy.
struct Row {
  std::size_t steps = 0;
  std::int64_t bytes = 0, workspace = 0;  ///< Of the rank that has most.
  Bounds bounds;
  double measured = 0, simulated = 0;
  Exposure exposure, simulated_exposure;  ///< Of the last run; in the simulator.
};

void write_trace(const Options& options, const AttentionOptions& how, Pass pass, std::string_view kind, const std::vector<Tracer>& traces) {
  std::vector<const Tracer*> pointers;
  for (const Tracer& trace : traces) pointers.push_back(&trace);
  const char* const name = pass == Pass::forward ? "forward" : "backward";
  write_file_atomically(std::filesystem::path(options.trace) / fmt::format("{}.{}.{}.json", how.strategy, name, kind),
                        to_chrome_trace(pointers));
}

Row measure(const Options& options, const AttentionProblem& problem, const AttentionOptions& how, Pass pass) {
  const plan::Plan plan = make_plan(problem, how, pass);
  const comm::Links links = links_of(options.machine, options.ranks_per_node);
  const execute::Pace pace = [&](const plan::Program& program, const plan::Step& step) {
    return modelled_seconds(options.machine, program, step);
  };
  Row row;
  for (const plan::Program& program : plan.programs) {
    row.steps = std::max(row.steps, program.steps.size());
    row.bytes = std::max(row.bytes, program.bytes_sent());
    row.workspace = std::max(row.workspace, program.workspace_bytes);
  }
  row.bounds = bounds_of(plan, links, pace);
  const simulate::Timeline timeline = simulate::simulate(plan, {pace, links});
  row.simulated = timeline.makespan, row.simulated_exposure = exposure_of(timeline.traces);
  std::vector<double> seconds;
  std::vector<Tracer> last;
  for (int sample = 0; sample < options.samples; ++sample) {
    execute::Rehearsal run = execute::rehearse(plan, links, pace);
    seconds.push_back(run.seconds);
    last = std::move(run.traces);
  }
  if (!options.trace.empty()) {
    write_trace(options, how, pass, "measured", last);
    write_trace(options, how, pass, "simulated", timeline.traces);
  }
  row.measured = median(seconds), row.exposure = exposure_of(last);
  return row;
}

void show(const OptionTable& table, const AttentionOptions& how, const Row& forward, const Row& backward) {
  const double measured = forward.measured + backward.measured, compute = forward.bounds.compute + backward.bounds.compute;
  const double link = forward.bounds.link + backward.bounds.link;
  Exposure exposure = forward.exposure, simulated_exposure = forward.simulated_exposure;
  exposure += backward.exposure, simulated_exposure += backward.simulated_exposure;
  say(table,
      fmt::format("{:<19} {:>6} {:>5}/{:<5} {:>10} {:>10} {:>8.1f} {:>8.1f} {:>9.1f} {:>9.1f} {:>9.1f} {:>8.2f} {:>7.1f}%", how.strategy,
                  how.pieces, forward.steps, backward.steps, bytes_text(static_cast<double>(forward.bytes + backward.bytes)),
                  bytes_text(static_cast<double>(std::max(forward.workspace, backward.workspace))), compute * 1e3, link * 1e3,
                  forward.measured * 1e3, backward.measured * 1e3, measured * 1e3, measured / std::max(compute, link),
                  100 * exposure.share()));
  if (!table.json()) return;
  const nlohmann::ordered_json json{{"strategy", how.strategy},
                                    {"pieces", how.pieces},
                                    {"bytes_sent", forward.bytes + backward.bytes},
                                    {"workspace_bytes", std::max(forward.workspace, backward.workspace)},
                                    {"compute_seconds", compute},
                                    {"link_seconds", link},
                                    {"forward_seconds", forward.measured},
                                    {"backward_seconds", backward.measured},
                                    {"simulated_seconds", forward.simulated + backward.simulated},
                                    {"exposed_share", exposure.share()},
                                    {"simulated_exposed_share", simulated_exposure.share()}};
  std::puts(json.dump().c_str());
}

}  // namespace

int bench_strategies(Arguments arguments) {
  OptionTable table("bench strategies", "all strategies on one problem, with paced links and kernels that sleep their modelled time",
                    "periplus bench strategies --ranks 8 [options]");
  Options options;
  add_options(table, options);
  table.parse(arguments);
  if (answered(table)) return kOk;
  const AttentionProblem problem = make_problem(options, table);
  if (!options.trace.empty()) create_folders(options.trace);
  say(table,
      fmt::format("{} ranks, {} layout, {} tokens in {} documents, {}/{} heads of {}, {} mask; bf16; {} Gflop/s a rank, links of {} GB/s",
                  options.ranks, options.layout, problem.layout.tokens(), problem.layout.cu_seqlens().size() - 1, options.heads,
                  options.kv_heads, options.head_size, to_text(problem.mask.spec()), options.machine.rank_gflops,
                  options.machine.link_gbytes));
  say(table, fmt::format("{:<19} {:>6} {:>11} {:>10} {:>10} {:>8} {:>8} {:>9} {:>9} {:>9} {:>8} {:>8}", "strategy", "pieces", "steps f/b",
                         "sent", "workspace", "compute", "link", "forward", "backward", "both", "/ bound", "exposed"));
  for (const strategy::Strategy& strategy : strategy::strategies()) {
    const AttentionOptions how = make_options(options, strategy, problem);
    if (const std::string reason = strategy::refusal(strategy, problem, how); !reason.empty()) {
      say(table, fmt::format("{:<19} refused: {}", strategy.name, reason));
      continue;
    }
    show(table, how, measure(options, problem, how, Pass::forward), measure(options, problem, how, Pass::backward));
  }
  say(table,
      "times in ms, sent and workspace of the rank that has most, forward and backward together; / bound: both / the larger of "
      "compute and link; exposed: of the time with exchanges under way, how much ranks have nothing to compute");
  return kOk;
}

}  // namespace periplus::launch::bench
