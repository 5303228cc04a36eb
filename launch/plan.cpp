// periplus plan: writes the route down without sailing it.
#include "launch/plan.h"

#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "launch/bytes_text.h"
#include "parallel/plan/print.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

const char* name_of(Pass pass) { return pass == Pass::forward ? "forward" : "backward"; }

nlohmann::json show_pass(const OptionTable& table, const PlanRequest& request, const std::string& strategy, const PlannedOperator& planned,
                         Pass pass) {
  nlohmann::json json = {{"pass", name_of(pass)}, {"programs", nlohmann::json::array()}};
  std::int64_t sent = 0, workspace = 0;
  std::string text;  // below the summary
  const std::vector<plan::Program> programs =
      request.rank < 0 ? planned.plan(pass).programs : std::vector<plan::Program>{planned.program(pass, request.rank)};
  for (const plan::Program& program : programs) {
    if (__builtin_add_overflow(sent, program.bytes_sent(), &sent))
      throw InvalidArgument("the ranks would send more than 2^63 bytes together; plan fewer tokens, heads or ranks");
    workspace = std::max(workspace, program.workspace_bytes);
    if (table.json()) {
      json["programs"].push_back(nlohmann::json::parse(plan::to_json(program)));
      continue;
    }
    std::string program_text = plan::to_text(program);
    program_text.insert(program_text.find('\n'), planned.rank_remark(program.rank));
    text += fmt::format("\n{} {}", name_of(pass), program_text);
  }
  say(table,
      fmt::format("{} {}: {} {}, {}: {} sent by {}, largest workspace {}\n{}", strategy, name_of(pass), request.ranks,
                  request.ranks == 1 ? "rank" : "ranks", planned.subject, bytes_text(static_cast<double>(sent)),
                  request.rank < 0 ? "all ranks" : fmt::format("rank {}", request.rank), bytes_text(static_cast<double>(workspace)), text));
  json["bytes_sent"] = sent;
  json["largest_workspace_bytes"] = workspace;
  return json;
}

}  // namespace

void add_request_options(OptionTable& table, PlanRequest& request) {
  table.add({.key = "parallel.ranks",
             .flag = "ranks",
             .target = &request.ranks,
             .value = "N",
             .help = "Ranks of the plan.",
             .least = 1,
             .most = 65536});
  table.add({.key = "data.tokens",
             .flag = "tokens",
             .target = &request.tokens,
             .value = "N",
             .help = "One document of N tokens; 0: 8192, or as --documents say.",
             .least = 0});
  table.add({.key = "data.documents",
             .flag = "documents",
             .target = &request.documents,
             .value = "A,B,...",
             .help = "Lengths of packed documents.",
             .least = 0});
  table.add({.flag = "pass", .target = &request.pass, .value = "PASS", .help = "Which pass:", .choices = {"forward", "backward", "both"}});
  table.add({.flag = "rank", .target = &request.rank, .value = "R", .help = "Prints the steps of this rank only; -1: all.", .least = -1});
}

void add_head_options(OptionTable& table, const std::string& table_name, int& head_size, int& value_size, std::string& dtype) {
  table.add({.key = table_name + ".head_size",
             .flag = "head-size",
             .target = &head_size,
             .value = "N",
             .help = "Width of a query and key head.",
             .least = 1});
  table.add({.key = table_name + ".value_size",
             .flag = "value-size",
             .target = &value_size,
             .value = "N",
             .help = "Width of a value head; 0: that of a query head.",
             .least = 0});
  table.add({.key = table_name + ".dtype",
             .flag = "dtype",
             .target = &dtype,
             .value = "TYPE",
             .help = "Type of q, k, v:",
             .choices = {"bf16", "f32", "f64"}});
}

std::vector<std::int64_t> document_borders(const PlanRequest& request) {
  if (request.rank >= request.ranks)
    throw InvalidArgument(fmt::format("--rank {}: the {} ranks are 0 to {}", request.rank, request.ranks, request.ranks - 1));
  if (request.tokens > 0 && !request.documents.empty()) throw InvalidArgument("--tokens and --documents contradict each other; choose one");
  std::vector<std::int64_t> borders = {0};
  for (const std::int64_t length : request.documents) {
    std::int64_t border = 0;
    if (__builtin_add_overflow(borders.back(), length, &border)) throw InvalidArgument("--documents: the lengths add up to more than 2^63");
    borders.push_back(border);
  }
  constexpr std::int64_t kUsual = 8192;
  if (request.documents.empty()) borders.push_back(request.tokens > 0 ? request.tokens : kUsual);
  return borders;
}

nlohmann::json show_passes(const OptionTable& table, const PlanRequest& request, const std::string& strategy,
                           const PlannedOperator& planned) {
  nlohmann::json passes = nlohmann::json::array();
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    if (request.pass == "both" || request.pass == name_of(pass)) passes.push_back(show_pass(table, request, strategy, planned, pass));
  }
  return passes;
}

int plan_command(Arguments arguments) {
  const std::string operation = take_operation("plan", arguments);
  if (operation == "batch") return plan_batch(arguments);
  return operation == "attention" ? plan_attention(arguments) : plan_linear(operation, arguments);
}

}  // namespace periplus::launch
