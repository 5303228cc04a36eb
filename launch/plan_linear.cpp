// periplus plan linear_attention and delta_rule.
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "launch/linear_options.h"
#include "launch/plan.h"
#include "launch/ranks.h"
#include "parallel/units.h"

namespace periplus::launch {
namespace {

struct Options {
  PlanRequest request;
  LinearAttentionOptions how;
  std::string layout = "zigzag", dtype = "bf16", decay = "scalar";
  int heads = 8, head_size = 64, value_size = 0;
  LinearSumOptions sums;
};

void add_options(OptionTable& table, const std::string& operation, Options& options) {
  add_linear_strategy_options(table, options.how, options.layout);
  add_request_options(table, options.request);
  table.add({.key = "linear.heads", .flag = "heads", .target = &options.heads, .value = "N", .help = "Heads.", .least = 1});
  table.add({.key = "linear.decay",
             .flag = "decay",
             .target = &options.decay,
             .value = "KIND",
             .help = "What log_decay has: nothing, a number per token and head, or one per channel of the key too:",
             .choices = {"none", "scalar", "diagonal"}});
  if (operation != "delta_rule") add_linear_sum_options(table, options.sums);
  add_head_options(table, "linear", options.head_size, options.value_size, options.dtype);
}

LinearAttentionProblem make_problem(const Options& options, const std::string& operation) {
  const std::vector<std::int64_t> borders = document_borders(options.request);
  LinearAttentionProblem problem{.layout = SequenceLayout::make(layout_kind_from_string(options.layout), options.request.ranks, borders)};
  problem.heads = options.heads;
  problem.head_size = options.head_size;
  problem.value_size = options.value_size;
  problem.dtype = dtype_from_string(options.dtype);
  problem.decay = options.decay == "none" ? Decay::none : options.decay == "scalar" ? Decay::scalar : Decay::diagonal;
  problem.delta_rule = operation == "delta_rule";
  options.sums.apply_to(problem);
  return problem;
}

}  // namespace

int plan_linear(const std::string& operation, Arguments arguments) {
  OptionTable table("plan " + operation, "prints what each rank computes and exchanges",
                    fmt::format("periplus plan {} --ranks 4 --layout zigzag [options]", operation));
  Options options;
  add_options(table, operation, options);
  table.parse(arguments);
  if (answered(table)) return kOk;
  const LinearAttentionProblem problem = make_problem(options, operation);
  const Units units(problem.layout);
  const PlannedOperator planned{
      .program = [&](Pass pass, int rank) { return make_program(problem, options.how, pass, rank); },
      .plan = [&](Pass pass) { return make_plan(problem, options.how, pass); },
      .subject = fmt::format("{} layout, {} tokens, {} heads of {} and {}, {}, {}{}{}", options.layout, problem.layout.tokens(),
                             problem.heads, problem.head_size, problem.value(), options.dtype, to_text(problem.decay),
                             problem.bidirectional ? ", bidirectional" : "", problem.normalise ? ", normalised" : ""),
      .rank_remark =
          [&](int rank) {
            const std::size_t count = units.of_rank(rank).size();
            return fmt::format(", {} {}", count, count == 1 ? "unit" : "units");
          }};
  const nlohmann::json passes = show_passes(table, options.request, options.how.strategy, planned);
  print_result(table, {{"operation", operation},
                       {"strategy", options.how.strategy},
                       {"layout", options.layout},
                       {"ranks", options.request.ranks},
                       {"passes", passes}});
  return kOk;
}

}  // namespace periplus::launch
