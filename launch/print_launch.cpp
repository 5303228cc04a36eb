#include "launch/print_launch.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include <fmt/format.h>

#include "launch/devices.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

/// As a shell reads it back.
std::string quoted(const std::string& word) {
  constexpr std::string_view kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=.,:/@%";
  if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos) return word;
  std::string inside;
  for (const char c : word) c == '\'' ? inside.append("'\\''") : inside.append(1, c);
  return fmt::format("'{}'", inside);
}

std::string kept_arguments(std::span<const std::string> arguments) {
  constexpr std::array<std::string_view, 2> kLauncherDecides = {"--ranks", "--transport"};
  std::string text;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    const std::string_view flag = std::string_view(word).substr(0, word.find('='));
    if (flag == "--print-launch") continue;
    if (std::ranges::find(kLauncherDecides, flag) != kLauncherDecides.end()) {
      i += flag.size() == word.size() ? 1 : 0;  // its value is a word of its own
      continue;
    }
    text += fmt::format(" {}", quoted(word));
  }
  return text;
}

}  // namespace

std::string launch_lines(const std::string& command, std::span<const std::string> arguments, const RankOptions& options) {
  const int ranks = options.ranks;
  if (ranks < 1) throw InvalidArgument("--print-launch needs the number of processes: --ranks N");
  const bool gpus = parse_device(options.device).kind == DeviceKind::cuda;
  // A file or --set may still say thread, which processes refuse.
  const char* const transport = options.transport == "thread" ? " --transport auto" : "";
  const std::string program = fmt::format("periplus {}{}{}", command, kept_arguments(arguments), transport);
  const std::string hosts = ranks == 1 ? "HOST1:1" : fmt::format("HOST1:{},HOST2:{}", (ranks + 1) / 2, ranks / 2);
  // Every rank of a host sees all its GPUs, so that NCCL can copy between them directly.
  const std::string slurm_gpus = gpus ? " --gpus-per-task=1 --gpu-bind=none" : "";
  return fmt::format(
      "{5}# on this host\n"
      "mpirun -n {0} --bind-to none {1}\n"
      "# on several hosts: their names, and after the colon the ranks of each{2}\n"
      "mpirun -n {0} --host {3} --bind-to none {1}\n"
      "# in a Slurm allocation\n"
      "srun --mpi=pmix --ntasks={0}{4} {1}\n"
      "# without MPI, on this host; on several hosts --nnodes, --node-rank, --master-addr and --master-port say who is where\n"
      "torchrun --no-python --nproc-per-node={0} {1}\n",
      ranks, program, gpus ? ", at most its GPUs" : "", hosts, slurm_gpus,
      gpus ? "# each rank takes a GPU of its own and, if it is not bound, the cores near it (periplus doctor lists them)\n" : "");
}

bool launch_printed(const std::string& command, std::span<const std::string> arguments, const RankOptions& options) {
  if (!options.print_launch) return false;
  std::fputs(launch_lines(command, arguments, options).c_str(), stdout);
  return true;
}

}  // namespace periplus::launch
