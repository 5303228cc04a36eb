// The `periplus` command: picks a subcommand and turns what it throws into a sentence and an exit code.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include "kernels/cpu_level.h"
#include "launch/commands.h"
#include "launch/ranks.h"
#include "launch/suggest.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

struct Command {
  std::string name;
  std::string purpose;
  int (*run)(Arguments);
  bool one_process = false;  ///< Refuses to run as several.
};

const std::vector<Command>& commands() {
  static const std::vector<Command> table = {
      {"train", "trains a language model on text, across ranks", train_command},
      {"apply", "runs one distributed operator on tensors from a safetensors file", apply_command},
      {"verify", "proves plans symbolically and checks small ones against fp64", verify_command, true},
      {"plan", "prints what each rank computes and exchanges", plan_command, true},
      {"bench", "measures: ranks against threads, memory by rank count, kernels against peaks, strategies over paced links", bench_command},
      {"simulate", "simulates a training step on a machine that need not be there", simulate_command, true},
      {"estimate", "says whether a model fits a machine, how fast it trains there, and how", estimate_command, true},
      {"calibrate", "measures this machine for simulate and estimate", calibrate_command},
      {"report", "shows training runs side by side", report_command, true},
      {"doctor", "shows what this machine offers and what to fix", doctor_command},
  };
  return table;
}

std::string help_page() {
  std::string page =
      "periplus: distributed long-context training\n\nUsage: periplus COMMAND [options]; under mpirun the ranks are its processes\n\n";
  for (const Command& command : commands()) page += fmt::format("  {:<9} {}\n", command.name, command.purpose);
  page +=
      "\nperiplus COMMAND --help lists the options of a command; periplus --version prints the version.\n"
      "Exit codes: 0 ok, 1 a check failed, 2 bad input, 3 failure while running, 75 stopped on request after saving.\n";
  return page;
}

/// The kernels cannot throw where they read the variable, so a name they do not know must be refused before.
void check_cpu_level() {
  constexpr const char* kVariable = "PERIPLUS_CPU_LEVEL";
  const std::optional<std::string> level = process_environment(kVariable);
  if (!level) return;
  std::vector<std::string_view> names;
  for (const kernels::CpuLevel known : kernels::kCpuLevels) names.push_back(to_string(known));
  if (std::ranges::find(names, *level) == names.end()) {
    throw InvalidArgument(fmt::format("{} is '{}'; set it to one of {}, or unset it", kVariable, *level, fmt::join(names, ", ")));
  }
}

int dispatch(const std::vector<std::string>& words, std::string& running) {
  const std::string first = words.empty() ? "--help" : words.front();
  if (first == "--help" || first == "-h" || first == "help") {
    std::fputs(help_page().c_str(), stdout);
    return kOk;
  }
  if (first == "--version") {
    std::fputs("periplus " PERIPLUS_VERSION "\n", stdout);
    return kOk;
  }
  const auto command = std::ranges::find(commands(), first, &Command::name);
  if (command == commands().end()) {
    std::vector<std::string> names;
    for (const Command& known : commands()) names.push_back(known.name);
    const std::string hint = did_you_mean(first, names);
    throw InvalidArgument(fmt::format("unknown command '{}'{}", first, hint.empty() ? "; periplus --help lists all" : hint));
  }
  running = first;
  if (command->one_process) require_one_process();
  check_cpu_level();
  return command->run(Arguments(words).subspan(1));
}

/// What was printed may be the result. Who closed standard output wants none of it.
void require_output_written() {
  const bool failed = std::fflush(stdout) != 0 || std::ferror(stdout) != 0;
  if (failed && ::fcntl(STDOUT_FILENO, F_GETFD) >= 0)
    throw DeviceError("not all of standard output could be written; is the disk full that it goes to?");
}

}  // namespace
}  // namespace periplus::launch

int main(int argc, char** argv) {
  std::string running;
  try {
    const int code = periplus::launch::dispatch(std::vector<std::string>(argv + 1, argv + argc), running);
    if (code == periplus::launch::kOk) periplus::launch::require_output_written();
    return code;
  } catch (const std::exception& error) {
    return periplus::launch::report(error, running);
  }
}
