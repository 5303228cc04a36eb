#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "launch/commands.h"
#include "launch/options.h"
#include "parallel/plan/plan.h"
#include "parallel/problem.h"

/// What the operations of `periplus plan` share.
namespace periplus::launch {

int plan_attention(Arguments arguments);
/// `operation` is linear_attention or delta_rule.
int plan_linear(const std::string& operation, Arguments arguments);
/// Batches of sequences of unequal lengths.
int plan_batch(Arguments arguments);

/// Which plan is wanted, but for the operator itself.
struct PlanRequest {
  int ranks = 4, rank = -1;
  std::int64_t tokens = 0;
  std::vector<std::int64_t> documents;
  std::string pass = "forward";
};
/// Rows --ranks, --tokens, --documents, --pass and --rank.
void add_request_options(OptionTable& table, PlanRequest& request);
/// Rows --head-size, --value-size and --dtype, under keys of `table_name`.
void add_head_options(OptionTable& table, const std::string& table_name, int& head_size, int& value_size, std::string& dtype);
/// Errors: InvalidArgument if --rank is not one of the ranks, or --tokens and --documents contradict each other.
std::vector<std::int64_t> document_borders(const PlanRequest& request);

/// Makes the plans of an operator and says what it is.
struct PlannedOperator {
  std::function<plan::Program(Pass, int rank)> program;
  std::function<plan::Plan(Pass)> plan;
  std::string subject;                               ///< "zigzag layout, 8192 tokens, ..."
  std::function<std::string(int rank)> rank_remark;  ///< ", 12 allowed pairs"
};
/// Prints the passes asked for and returns them as JSON.
nlohmann::json show_passes(const OptionTable& table, const PlanRequest& request, const std::string& strategy,
                           const PlannedOperator& planned);

}  // namespace periplus::launch
