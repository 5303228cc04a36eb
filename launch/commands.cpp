// What all commands share: answering --help and --dump-config, and where output goes.
#include "launch/commands.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "launch/suggest.h"
#include "runtime/error.h"

namespace periplus::launch {

bool answered(const OptionTable& table) {
  if (table.help_wanted()) {
    std::fputs(table.help().c_str(), stdout);
  } else if (table.dump_wanted()) {
    std::fputs(table.resolved_toml().c_str(), stdout);
  }
  return table.help_wanted() || table.dump_wanted();
}

void say(const OptionTable& table, const std::string& line) {
  std::FILE* const stream = table.json() ? stderr : stdout;
  std::fputs((line + "\n").c_str(), stream);
  std::fflush(stream);
}

nlohmann::json or_null(const std::optional<double>& number) { return number ? nlohmann::json(*number) : nlohmann::json(); }

void print_result(const OptionTable& table, const nlohmann::json& result) {
  if (!table.json()) return;
  std::fputs((result.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n").c_str(), stdout);
  std::fflush(stdout);
}

std::string take_operation(const std::string& command, Arguments& arguments) {
  std::vector<std::string> operations = {"attention", "linear_attention", "delta_rule"};
  if (command == "plan") operations.push_back("batch");
  const std::string word = arguments.empty() || arguments.front().starts_with("-") ? "" : arguments.front();
  if (word.empty()) {
    const auto help = std::ranges::find_if(arguments, [](const std::string& text) { return text == "--help" || text == "-h"; });
    if (help != arguments.end()) {
      arguments = Arguments(help, 1);
      return operations.front();
    }
    throw InvalidArgument(fmt::format("which operation? use: periplus {} {} [options]", command, fmt::join(operations, "|")));
  }
  arguments = arguments.subspan(1);
  if (std::ranges::find(operations, word) != operations.end()) return word;
  throw InvalidArgument(
      fmt::format("unknown operation '{}'{}; there are {}", word, did_you_mean(word, operations), fmt::join(operations, ", ")));
}

}  // namespace periplus::launch
