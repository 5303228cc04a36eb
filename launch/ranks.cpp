#include "launch/ranks.h"

#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include <fmt/format.h>

#include "launch/ranks_mpi.h"
#include "runtime/comm/mpi_transport.h"
#include "runtime/comm/thread_transport.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

std::optional<int> number_in(const Environment& environment, const char* name) {
  const std::optional<std::string> text = environment(name);
  int number = 0;
  if (!text || std::from_chars(text->data(), text->data() + text->size(), number).ec != std::errc{}) return std::nullopt;
  return number;
}

struct Launched {
  std::string by;
  int rank = 0;
  int size = 1;
};

/// The process manager that MPI_Init would talk to, if there is one.
std::optional<Launched> mpi_launcher(const Environment& environment) {
  struct Names {
    const char *by, *rank, *size;
  };
  // srun tells the world size of a PMIx job only in its own variable.
  constexpr Names kKnown[] = {{"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
                              {"the process manager", "PMI_RANK", "PMI_SIZE"},
                              {"srun", "PMIX_RANK", "SLURM_STEP_NUM_TASKS"}};
  for (const Names& names : kKnown) {
    const auto rank = number_in(environment, names.rank);
    const auto size = number_in(environment, names.size);
    if (rank && size) return Launched{names.by, *rank, *size};
  }
  return std::nullopt;
}

void refuse_processes_without_mpi(const Environment& environment) {
  if (const int size = number_in(environment, "WORLD_SIZE").value_or(1); size > 1) {
    throw InvalidArgument(
        fmt::format("torchrun started {} processes, but host ranks reach each other through MPI; start them with "
                    "mpirun -n {} periplus ..., or use one process with --ranks {}",
                    size, size, size));
  }
  if (const int size = number_in(environment, "SLURM_STEP_NUM_TASKS").value_or(1); size > 1) {
    throw InvalidArgument(
        fmt::format("srun started {} processes without a process manager for MPI; start them with srun --mpi=pmix -n {} "
                    "periplus ..., or use mpirun inside the allocation",
                    size, size));
  }
}

RankSource mpi_ranks(const RankOptions& options, const Launched& launched) {
  if (options.ranks != 0 && options.ranks != launched.size) {
    throw InvalidArgument(fmt::format("--ranks {} contradicts {}, which started {}; leave --ranks out{}", options.ranks, launched.by,
                                      launched.size, launched.size == 1 ? " or add --transport thread" : ""));
  }
  return {true, launched.size, launched.rank};
}

/// Every rank of a job usually fails alike: rank 0 gets time to say it and end the job. A rank that is still alive after
/// that has a problem of its own.
void let_rank_zero_speak(int rank) {
  if (rank > 0) std::this_thread::sleep_for(std::chrono::seconds(2));
}

int exit_code_of(const std::exception& error) {
  return dynamic_cast<const InvalidArgument*>(&error) != nullptr ? kBadInput : kRuntimeFailure;
}

void say(const std::string& line) {
  std::fputs((line + "\n").c_str(), stderr);
  std::fflush(stderr);
}

/// Uses MPI only where it is known to be sane: after a communication failure any MPI call may hang, and a launcher ends
/// the job anyway when a process leaves with an error.
[[noreturn]] void end_failed_rank(const std::exception& error, const MpiWorld& world) {
  const int code = exit_code_of(error);
  if (code == kBadInput) let_rank_zero_speak(world.rank);
  const std::string who = fmt::format("rank {} of {}: ", world.rank, world.size), message = error.what();
  say("periplus: " + (message.starts_with(who) ? "" : who) + message);
  std::fflush(stdout);
  if (dynamic_cast<const CommError*>(&error) != nullptr) std::_Exit(code);
  abort_mpi(code);
}

comm::TransportOptions transport_options(const RankOptions& options) {
  return {std::chrono::milliseconds(static_cast<std::int64_t>(std::ceil(options.deadline_seconds * 1e3)))};
}

int run_mpi_rank(const RankSource& source, const RankOptions& options, const std::function<int(const comm::Communicator&)>& body) {
  const MpiWorld world = start_mpi();
  int code = kOk;
  // Outlives a failing body: freeing the communicator while other ranks still wait in it could hang.
  comm::Communicator communicator;
  try {
    if (world.size != source.ranks) {
      throw InvalidArgument(
          fmt::format("the launcher announced {} processes but MPI has {}; was this program started by the mpirun of another "
                      "MPI than {}?",
                      source.ranks, world.size, describe_mpi().text));
    }
    communicator = comm::make_mpi_world(transport_options(options));
    code = body(communicator);
    communicator.barrier(Stream());
  } catch (const std::exception& error) {
    end_failed_rank(error, world);
  }
  communicator = {};
  finish_mpi();
  return code;
}

}  // namespace

void add_rank_options(OptionTable& table, RankOptions& options) {
  table.add({.key = "parallel.ranks",
             .flag = "ranks",
             .target = &options.ranks,
             .value = "N",
             .help = "Ranks as threads of this process; 0: one, or as many processes as mpirun started.",
             .least = 0,
             .most = 1024});
  table.add({.key = "parallel.transport",
             .flag = "transport",
             .target = &options.transport,
             .value = "NAME",
             .help = "How ranks reach each other:",
             .choices = {"auto", "thread", "mpi"}});
  table.add({.key = "run.deadline_seconds",
             .flag = "deadline",
             .target = &options.deadline_seconds,
             .value = "SECONDS",
             .help = "Longest wait for other ranks before the run ends with a message.",
             .least = 0.001,
             .most = 1e6});
}

std::optional<std::string> process_environment(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  if (value == nullptr) return std::nullopt;
  return value;
}

RankSource find_ranks(const RankOptions& options, const Environment& environment) {
  const std::optional<Launched> launched = mpi_launcher(environment);
  if (options.transport == "thread") {
    if (launched && launched->size > 1) {
      throw InvalidArgument(fmt::format("--transport thread contradicts {}, which started {} processes; start one process with --ranks {}",
                                        launched->by, launched->size, launched->size));
    }
    return {false, std::max(options.ranks, 1), 0};
  }
  if (launched) return mpi_ranks(options, *launched);
  refuse_processes_without_mpi(environment);
  if (options.transport == "mpi") {
    if (options.ranks > 1)
      throw InvalidArgument(fmt::format("--transport mpi needs its processes started: mpirun -n {} periplus ...", options.ranks));
    return {true, 1, 0};
  }
  return {false, std::max(options.ranks, 1), 0};
}

int run_ranks(const RankSource& source, const RankOptions& options, const std::function<int(const comm::Communicator&)>& body) {
  if (source.mpi) return run_mpi_rank(source, options, body);
  int code = kOk;
  const auto thread_body = [&](const comm::Communicator& communicator) {
    const int mine = body(communicator);
    if (communicator.rank() == 0) code = mine;
  };
  comm::run_thread_ranks(source.ranks, thread_body, transport_options(options));
  return code;
}

int report(const std::exception& error, const std::string& command) {
  const std::optional<Launched> launched = mpi_launcher(process_environment);
  if (launched) let_rank_zero_speak(launched->rank);
  say(fmt::format("periplus{}{}: {}", command.empty() ? "" : " ", command, error.what()));
  return exit_code_of(error);
}

}  // namespace periplus::launch
