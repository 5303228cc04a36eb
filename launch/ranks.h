#pragma once

#include <exception>
#include <functional>
#include <optional>
#include <string>

#include "launch/devices.h"
#include "launch/options.h"
#include "runtime/comm/communicator.h"
#include "runtime/comm/process_ranks.h"
#include "runtime/comm/tcp_transport.h"

namespace periplus::launch {

/// Exit codes of every command. 75 (EX_TEMPFAIL) tells a scheduler to start the same command again with --resume.
enum ExitCode : int {
  kOk = 0,
  kFailedCheck = 1,
  kBadInput = comm::kBadInputCode,
  kRuntimeFailure = comm::kFailureCode,
  kStoppedByRequest = 75
};

struct RankOptions {
  int ranks = 0;  ///< 0: as many as were launched; if none were, `alone`.
  int alone = 1;
  std::string transport = "auto";
  std::string device = "cpu";
  double deadline_seconds = 120;
  bool print_launch = false;
};
enum class Devices { cpu_only, any };
/// Rows --ranks, --transport, --deadline and, for a command that runs on GPUs too, --device.
void add_rank_options(OptionTable& table, RankOptions& options, Devices devices = Devices::cpu_only);
/// Row --print-launch.
void add_print_launch_option(OptionTable& table, RankOptions& options);

/// Reads an environment variable; nothing if it is not set. Replaced in tests.
using Environment = std::function<std::optional<std::string>(const std::string&)>;
std::optional<std::string> process_environment(const std::string& name);

/// Where the ranks of this run are: processes that meet through MPI (of mpirun or srun) or by TCP (of torchrun), or threads of
/// this process.
struct RankSource {
  bool mpi = false;
  int ranks = 1;
  int rank = 0;  ///< Of this process, as its launcher says; 0 for threads.
  DeviceRequest device{};
  std::optional<comm::TcpGroup> tcp{};
  bool processes() const noexcept { return mpi || tcp; }
};

/// Errors: InvalidArgument if --ranks, --transport or --device contradict each other or the launcher, or if the launcher
/// started several processes that could not reach each other.
RankSource find_ranks(const RankOptions& options, const Environment& environment = process_environment);

/// For a command that runs in one process. InvalidArgument if a launcher started several: each would do all of the work.
void require_one_process(const Environment& environment = process_environment);

/// Who started this process as which rank, and the variables of launchers that are set, in one line.
std::string describe_launcher(const Environment& environment = process_environment);

/// Calls `body` on every rank that lives in this process; returns what rank 0 of the process returned. A failing rank
/// that is a process prints its message and ends the whole job with its exit code, so this call then does not return; with threads
/// the exception of the rank that failed first is thrown.
/// On GPUs processes have one each and reach each other through NCCL; threads share one.
/// Errors: as require_device, before any rank starts.
int run_ranks(const RankSource& source, const RankOptions& options, const std::function<int(const comm::Communicator&, Device)>& body);
/// The same for a command without --device.
int run_ranks(const RankSource& source, const RankOptions& options, const std::function<int(const comm::Communicator&)>& body);

/// Prints "periplus <command>: <message>" and returns the exit code that belongs to the exception. Among processes that
/// fail alike only rank 0 speaks.
int report(const std::exception& error, const std::string& command);

}  // namespace periplus::launch
