// periplus plan attention.
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "launch/attention_options.h"
#include "launch/plan.h"
#include "launch/ranks.h"
#include "parallel/attention.h"
#include "parallel/balanced_layout.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

struct Options {
  PlanRequest request;
  AttentionOptions how;
  std::string layout = "zigzag", machine, dtype = "bf16";
  int heads = 8, kv_heads = 8, head_size = 64, value_size = 0;
  MaskOptions mask;
};

void add_options(OptionTable& table, Options& options) {
  add_strategy_options(table, options.how, options.layout);
  add_machine_option(table, options.machine);
  add_request_options(table, options.request);
  table.add({.key = "attention.heads", .flag = "heads", .target = &options.heads, .value = "N", .help = "Query heads.", .least = 1});
  table.add({.key = "attention.kv_heads",
             .flag = "kv-heads",
             .target = &options.kv_heads,
             .value = "N",
             .help = "Key/value heads; divides heads.",
             .least = 1});
  add_head_options(table, "attention", options.head_size, options.value_size, options.dtype);
  add_mask_options(table, options.mask);
}

AttentionProblem make_problem(const Options& options, const OptionTable& table) {
  if (options.heads % options.kv_heads != 0) {
    throw InvalidArgument(fmt::format("--heads {} is not a multiple of --kv-heads {}", options.heads, options.kv_heads));
  }
  const std::vector<std::int64_t> borders = document_borders(options.request);
  const Mask mask(mask_spec(options.mask, table), borders);
  AttentionProblem problem{.layout = make_layout(layout_kind_from_string(options.layout), options.request.ranks, mask), .mask = mask};
  problem.q_heads = options.heads;
  problem.kv_heads = options.kv_heads;
  problem.head_size = options.head_size;
  problem.value_size = options.value_size;
  problem.dtype = dtype_from_string(options.dtype);
  return problem;
}

}  // namespace

int plan_attention(Arguments arguments) {
  OptionTable table("plan attention", "prints what each rank computes and exchanges",
                    "periplus plan attention --ranks 4 --layout zigzag [options]");
  Options options;
  add_options(table, options);
  table.parse(arguments);
  if (answered(table)) return kOk;
  const AttentionProblem problem = make_problem(options, table);
  resolve_auto(table, options.machine, problem, options.how);
  const PlannedOperator planned{.program = [&](Pass pass, int rank) { return make_program(problem, options.how, pass, rank); },
                                .plan = [&](Pass pass) { return make_plan(problem, options.how, pass); },
                                .subject = fmt::format("{} layout, {} tokens, {}/{} heads of {} and {}, {}, {} mask", options.layout,
                                                       problem.layout.tokens(), problem.q_heads, problem.kv_heads, problem.head_size,
                                                       problem.value(), options.dtype, to_text(problem.mask.spec())),
                                .rank_remark =
                                    [&](int rank) {
                                      const std::int64_t pairs = area_of_rank(problem.layout, problem.mask, rank);
                                      return fmt::format(", {} allowed {}", pairs, pairs == 1 ? "pair" : "pairs");
                                    }};
  const nlohmann::json passes = show_passes(table, options.request, options.how.strategy, planned);
  print_result(table, {{"operation", "attention"},
                       {"strategy", options.how.strategy},
                       {"layout", options.layout},
                       {"ranks", options.request.ranks},
                       {"passes", passes}});
  return kOk;
}

}  // namespace periplus::launch
