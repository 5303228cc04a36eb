// periplus doctor: what this machine offers, and what to fix.
#include <algorithm>
#include <array>
#include <iterator>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "launch/commands.h"
#include "launch/findings.h"
#include "launch/ranks.h"

namespace periplus::launch {

int doctor_command(Arguments arguments) {
  OptionTable table("doctor", "shows what this machine offers and what to fix", "periplus doctor [--json]");
  table.parse(arguments);
  if (answered(table)) return kOk;

  std::vector<Finding> found = {examine_cpu(),    examine_kernels(),  examine_cores(),    examine_topology(),
                                examine_memory(), examine_mpi(),      examine_launcher(), examine_single_copy(),
                                examine_onednn(), examine_openblas(), examine_cuda()};
  std::ranges::move(examine_gpus(), std::back_inserter(found));
  found.push_back(examine_nccl());

  constexpr std::array<const char*, 3> kMarks = {"ok", "--", "!!"};
  constexpr std::array<const char*, 3> kWords = {"good", "note", "trouble"};
  nlohmann::json findings = nlohmann::json::array();
  int troubles = 0;
  for (const Finding& finding : found) {
    const auto health = static_cast<std::size_t>(finding.health);
    troubles += finding.health == Health::trouble ? 1 : 0;
    say(table, fmt::format("{}  {:<12} {}", kMarks[health], finding.subject, finding.fact));
    if (!finding.remedy.empty()) say(table, fmt::format("    {:<12} -> {}", "", finding.remedy));
    findings.push_back({{"subject", finding.subject}, {"health", kWords[health]}, {"fact", finding.fact}, {"remedy", finding.remedy}});
  }
  say(table, troubles == 0 ? "Nothing needs fixing." : fmt::format("{} to fix.", troubles));
  print_result(table, {{"findings", findings}, {"troubles", troubles}});
  return kOk;
}

}  // namespace periplus::launch
