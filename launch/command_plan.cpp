// periplus plan attention: writes the route down without sailing it.
#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "launch/attention_options.h"
#include "launch/commands.h"
#include "launch/progress.h"
#include "launch/ranks.h"
#include "parallel/attention.h"
#include "parallel/balanced_layout.h"
#include "parallel/plan/print.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

struct PlanOptions {
  AttentionOptions how;
  std::string layout = "zigzag", dtype = "bf16", pass = "forward";
  int ranks = 4, rank = -1;
  std::int64_t tokens = 0;
  std::vector<std::int64_t> documents;
  int heads = 8, kv_heads = 8, head_size = 64, value_size = 0;
  MaskOptions mask;
};

void add_options(OptionTable& table, PlanOptions& options) {
  add_strategy_options(table, options.how, options.layout);
  table.add({.key = "parallel.ranks",
             .flag = "ranks",
             .target = &options.ranks,
             .value = "N",
             .help = "Ranks of the plan.",
             .least = 1,
             .most = 65536});
  table.add({.key = "data.tokens",
             .flag = "tokens",
             .target = &options.tokens,
             .value = "N",
             .help = "One document of N tokens; 0: 8192, or as --documents say.",
             .least = 0});
  table.add({.key = "data.documents",
             .flag = "documents",
             .target = &options.documents,
             .value = "A,B,...",
             .help = "Lengths of packed documents.",
             .least = 0});
  table.add({.key = "attention.heads", .flag = "heads", .target = &options.heads, .value = "N", .help = "Query heads.", .least = 1});
  table.add({.key = "attention.kv_heads",
             .flag = "kv-heads",
             .target = &options.kv_heads,
             .value = "N",
             .help = "Key/value heads; divides heads.",
             .least = 1});
  table.add({.key = "attention.head_size",
             .flag = "head-size",
             .target = &options.head_size,
             .value = "N",
             .help = "Width of a query and key head.",
             .least = 1});
  table.add({.key = "attention.value_size",
             .flag = "value-size",
             .target = &options.value_size,
             .value = "N",
             .help = "Width of a value head; 0: that of a query head.",
             .least = 0});
  table.add({.key = "attention.dtype",
             .flag = "dtype",
             .target = &options.dtype,
             .value = "TYPE",
             .help = "Type of q, k, v:",
             .choices = {"bf16", "f32", "f64"}});
  add_mask_options(table, options.mask);
  table.add({.flag = "pass", .target = &options.pass, .value = "PASS", .help = "Which pass:", .choices = {"forward", "backward", "both"}});
  table.add({.flag = "rank", .target = &options.rank, .value = "R", .help = "Prints the steps of this rank only; -1: all.", .least = -1});
}

std::vector<std::int64_t> document_borders(const PlanOptions& options) {
  if (options.tokens > 0 && !options.documents.empty()) throw InvalidArgument("--tokens and --documents contradict each other; choose one");
  std::vector<std::int64_t> borders = {0};
  for (const std::int64_t length : options.documents) {
    std::int64_t border = 0;
    if (__builtin_add_overflow(borders.back(), length, &border)) throw InvalidArgument("--documents: the lengths add up to more than 2^63");
    borders.push_back(border);
  }
  constexpr std::int64_t kUsual = 8192;
  if (options.documents.empty()) borders.push_back(options.tokens > 0 ? options.tokens : kUsual);
  return borders;
}

AttentionProblem make_problem(const PlanOptions& options, const OptionTable& table) {
  if (options.heads % options.kv_heads != 0) {
    throw InvalidArgument(fmt::format("--heads {} is not a multiple of --kv-heads {}", options.heads, options.kv_heads));
  }
  if (options.rank >= options.ranks)
    throw InvalidArgument(fmt::format("--rank {}: the {} ranks are 0 to {}", options.rank, options.ranks, options.ranks - 1));
  const std::vector<std::int64_t> borders = document_borders(options);
  const Mask mask(mask_spec(options.mask, table), borders);
  AttentionProblem problem{.layout = make_layout(layout_kind_from_string(options.layout), options.ranks, mask), .mask = mask};
  problem.q_heads = options.heads;
  problem.kv_heads = options.kv_heads;
  problem.head_size = options.head_size;
  problem.value_size = options.value_size;
  problem.dtype = dtype_from_string(options.dtype);
  return problem;
}

std::vector<plan::Program> make_programs(const PlanOptions& options, const AttentionProblem& problem, Pass pass) {
  if (options.rank < 0) return make_plan(problem, options.how, pass).programs;
  return {make_program(problem, options.how, pass, options.rank)};
}

nlohmann::json show_pass(const OptionTable& table, const PlanOptions& options, const AttentionProblem& problem, Pass pass) {
  const char* const name = pass == Pass::forward ? "forward" : "backward";
  nlohmann::json json = {{"pass", name}, {"programs", nlohmann::json::array()}};
  std::int64_t sent = 0, workspace = 0;
  std::string text;  // below the summary
  const std::vector<plan::Program> programs = make_programs(options, problem, pass);
  for (const plan::Program& program : programs) {
    sent += program.bytes_sent();
    workspace = std::max(workspace, program.workspace_bytes);
    if (table.json()) {
      json["programs"].push_back(nlohmann::json::parse(plan::to_json(program)));
      continue;
    }
    const std::int64_t pairs = area_of_rank(problem.layout, problem.mask, program.rank);
    std::string program_text = plan::to_text(program);
    program_text.insert(program_text.find('\n'), fmt::format(", {} allowed {}", pairs, pairs == 1 ? "pair" : "pairs"));
    text += fmt::format("\n{} {}", name, program_text);
  }
  const int heads = problem.q_heads, kv_heads = problem.kv_heads;
  say(table,
      fmt::format("{} {}: {} {}, {} layout, {} tokens, {}/{} heads of {} and {}, {}, {} mask: {} sent by {}, largest workspace {}\n{}",
                  options.how.strategy, name, options.ranks, options.ranks == 1 ? "rank" : "ranks", options.layout, problem.layout.tokens(),
                  heads, kv_heads, problem.head_size, problem.value(), options.dtype, to_text(problem.mask.spec()),
                  bytes_text(static_cast<double>(sent)), options.rank < 0 ? "all ranks" : fmt::format("rank {}", options.rank),
                  bytes_text(static_cast<double>(workspace)), text));
  json["bytes_sent"] = sent;
  json["largest_workspace_bytes"] = workspace;
  return json;
}

}  // namespace

int plan_command(Arguments arguments) {
  take_operation("plan", arguments);
  OptionTable table("plan attention", "prints what each rank computes and exchanges",
                    "periplus plan attention --ranks 4 --layout zigzag [options]");
  PlanOptions options;
  add_options(table, options);
  table.parse(arguments);
  if (answered(table)) return kOk;
  const AttentionProblem problem = make_problem(options, table);
  resolve_auto(table, problem, options.how);
  nlohmann::json passes = nlohmann::json::array();
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const char* const name = pass == Pass::forward ? "forward" : "backward";
    if (options.pass == "both" || options.pass == name) passes.push_back(show_pass(table, options, problem, pass));
  }
  print_result(table, {{"operation", "attention"},
                       {"strategy", options.how.strategy},
                       {"layout", options.layout},
                       {"ranks", options.ranks},
                       {"passes", passes}});
  return kOk;
}

}  // namespace periplus::launch
